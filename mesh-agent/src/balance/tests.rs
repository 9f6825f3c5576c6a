use super::*;

/// `name:flags`, the last part of the address, and: r ready, d draining, n same node, z same zone.
fn endpoints(list: &str) -> Vec<Endpoint> {
    list.split_whitespace()
        .map(|item| {
            let (last, flags) = item.split_once(':').unwrap();
            Endpoint {
                address: format!("10.0.0.{last}").parse().unwrap(),
                port: 80,
                ready: flags.contains('r'),
                draining: flags.contains('d'),
                node: Some(if flags.contains('n') { "here" } else { "there" }.into()),
                zone: flags.contains('z').then(|| "zone-a".into()),
                workload: None,
            }
        })
        .collect()
}

fn chosen(list: &str, distribution: TrafficDistribution, zone: Option<&str>) -> String {
    let last = |endpoint: &Endpoint| endpoint.address.to_string().rsplit('.').next().unwrap().to_owned();
    let chosen = candidates(endpoints(list), distribution, "here", zone);
    chosen.iter().map(last).collect::<Vec<_>>().join(" ")
}

#[test]
fn candidates_are_the_preferred_usable_ones() {
    use TrafficDistribution::{Any, PreferSameNode, PreferSameZone};
    for (list, distribution, zone, expected) in [
        ("", Any, None, ""),
        ("1:r 2:r", Any, None, "1 2"),
        ("1:r 2:", Any, None, "1"),
        ("1:r 2:d", Any, None, "1"),
        ("1: 2:d 3:d", Any, None, "2 3"),
        ("1: 2:", Any, None, ""),
        ("1:rn 2:r", PreferSameNode, None, "1"),
        ("1:rz 2:r", PreferSameNode, Some("zone-a"), "1"),
        ("1:rz 2:rnz", PreferSameNode, Some("zone-a"), "2"),
        ("1:r 2:r", PreferSameNode, Some("zone-a"), "1 2"),
        // Not ready: being near does not count.
        ("1:n 2:r", PreferSameNode, None, "2"),
        ("1:dn 2:r", PreferSameNode, None, "2"),
        ("1:dn 2:d", PreferSameNode, None, "1"),
        ("1:rz 2:r", PreferSameZone, Some("zone-a"), "1"),
        ("1:rz 2:r", PreferSameZone, Some("zone-b"), "1 2"),
        ("1:rn 2:rz", PreferSameZone, Some("zone-a"), "2"),
        // A node that does not know its zone must not match endpoints that do not know theirs.
        ("1:rz 2:r", PreferSameZone, None, "1 2"),
    ] {
        assert_eq!(chosen(list, distribution, zone), expected, "{list:?} {distribution:?} {zone:?}");
    }
}

#[test]
fn pick_is_even_and_covers_the_whole_range() {
    assert_eq!(pick(&[], 7), None);
    let three = endpoints("1:r 2:r 3:r");
    let mut hits = [0; 3];
    for step in 0..3000_u32 {
        let picked = pick(&three, step * (u32::MAX / 3000)).unwrap();
        hits[three.iter().position(|endpoint| endpoint == picked).unwrap()] += 1;
    }
    assert!(hits.iter().all(|hits| (999..=1001).contains(hits)), "{hits:?}");
    assert_eq!(pick(&three, 0), three.first());
    assert_eq!(pick(&three, u32::MAX), three.last());
}
