//! What is followed change by change is what is made anew.

use std::fmt::Write;

use proptest::prelude::*;

use super::{reference::Reference, *};

/// A choice of what an object says; each kind makes of it what it can.
type Choice = [u8; 8];
type Choices = [u8; 6];

const NODES: [&str; 3] = ["here", "near", "far"];
const PLACES: usize = 26;

/// The object of a place in the world, if the choice is that there is one.
fn text(place: usize, choice: Choice) -> Option<String> {
    let [exists, lines, rest @ ..] = choice;
    if exists % 4 == 0 {
        return None;
    }
    let [a, b, c, ..] = rest;
    let text = match place {
        0..3 => namespace(place, a, b),
        3..11 => pod(place - 3, rest),
        11..14 => service(place - 11, a, b, c),
        14..18 => slice(place - 14, rest),
        18..21 => {
            let zone =
                ["{}", "{topology.kubernetes.io/zone: a}", "{topology.kubernetes.io/zone: b}"][usize::from(a % 3)];
            let name = NODES[place - 18];
            format!("{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {zone}}}}}")
        }
        _ => policy(place - 21, a, b),
    };
    Some("#\n".repeat(usize::from(lines % 3)) + &text)
}

fn namespace(place: usize, a: u8, b: u8) -> String {
    let name = ["shop", "other", "istio-system"][place];
    let mesh = ["enabled", "disabled"][usize::from(a % 2)];
    let mode = ["", ", mesh-agent.io/mode: strict", ", mesh-agent.io/exclude-outbound-ports: '25'"][usize::from(b % 3)];
    format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, annotations: {{mesh-agent.io/mesh: {mesh}{mode}}}}}}}"
    )
}

fn pod(place: usize, [label, annotations, netns, place_of, account, ips]: Choices) -> String {
    let namespace = ["shop", "shop", "shop", "other"][place % 4];
    let label = ["a", "b"][usize::from(label % 2)];
    let mut annotations = match annotations % 5 {
        0 => "mesh-agent.io/mode: strict".to_owned(),
        1 => "mesh-agent.io/mesh: enabled".to_owned(),
        _ => String::new(),
    };
    if netns % 3 > 0 {
        let _ = write!(annotations, ", mesh-agent.io/netns: web-{}", netns % 3);
    }
    let node = match place_of % 6 {
        0..3 => String::new(),
        node => format!("nodeName: {}, ", NODES[usize::from(node) - 3]),
    };
    let host = if place_of > 230 { "hostNetwork: true, " } else { "" };
    let phase = if account > 230 { "Failed" } else { "Running" };
    let account = if account % 4 == 0 { "serviceAccountName: other" } else { "" };
    let ips = match ips % 8 {
        0 => String::new(),
        7 => "{ip: 10.0.0.1}, {ip: 'fd00::1'}".to_owned(),
        last => format!("{{ip: 10.0.0.{last}}}"),
    };
    let annotations = annotations.trim_start_matches(", ");
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: p{place}, namespace: {namespace}, labels: {{app: {label}}}, \
         annotations: {{{annotations}}}}}, spec: {{{node}{host}{account}}}, status: {{podIPs: [{ips}], phase: {phase}}}}}"
    )
}

fn service(place: usize, a: u8, b: u8, c: u8) -> String {
    let (namespace, name) = [("shop", "s0"), ("shop", "s1"), ("other", "s0")][place];
    let addresses = match a % 7 {
        0 => "None".to_owned(),
        6 => "10.0.0.8, 'fd00::1'".to_owned(),
        last => format!("10.0.0.{}", last + 4),
    };
    let ports = ["{port: 80}", "{port: 81}", "{port: 80}, {port: 81, name: other}"][usize::from(b % 3)];
    let more = ["", "trafficDistribution: PreferSameZone, ", "internalTrafficPolicy: Local, "][usize::from(c % 3)];
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, \
         spec: {{{more}clusterIPs: [{addresses}], ports: [{ports}]}}}}"
    )
}

fn slice(place: usize, [service, endpoints @ ..]: Choices) -> String {
    let namespace = if place == 3 { "other" } else { "shop" };
    let label = ["kubernetes.io/service-name: s0", "kubernetes.io/service-name: s1", ""][usize::from(service % 3)];
    let mut text = String::new();
    for choice in endpoints.into_iter().filter(|choice| choice % 8 > 0) {
        let more = ["", ", nodeName: here", ", nodeName: near", ", zone: a", ", conditions: {ready: false}"];
        let more = more[usize::from(choice / 8) % more.len()];
        let _ = write!(text, "{{addresses: [10.0.0.{}]{more}}}, ", choice % 8);
    }
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: e{place}, namespace: {namespace}, \
         labels: {{{label}}}}}, addressType: IPv4, ports: [{{port: 8080}}], endpoints: [{text}]}}"
    )
}

fn policy(place: usize, a: u8, b: u8) -> String {
    let (namespace, is_peer) =
        [("shop", true), ("shop", true), ("istio-system", true), ("shop", false), ("istio-system", false)][place];
    let selector = ["", "selector: {matchLabels: {app: a}}, "][usize::from(a % 2)];
    let (kind, rest) = if is_peer {
        ("PeerAuthentication", format!("mtls: {{mode: {}}}", ["STRICT", "PERMISSIVE", "UNSET"][usize::from(b % 3)]))
    } else {
        ("AuthorizationPolicy", format!("action: {}", ["ALLOW", "DENY", "AUDIT"][usize::from(b % 3)]))
    };
    format!(
        "{{apiVersion: security.istio.io/v1, kind: {kind}, metadata: {{name: y{place}, namespace: {namespace}}}, \
         spec: {{{selector}{rest}}}}}"
    )
}

fn object(text: &str) -> Loaded {
    let path = Arc::new(PathBuf::from("a"));
    let parsed = parse::file(&path, text).unwrap();
    let entry = parsed.entries.into_iter().next().unwrap_or_else(|| panic!("{:?} {text}", parsed.problems));
    let object = entry.object.unwrap_or_else(|| panic!("{:?} {text}", parsed.problems));
    Loaded { key: entry.key, object, location: entry.location }
}

/// The key of a place is the same whatever the choice.
fn key(place: usize) -> Key {
    object(&text(place, [1; 8]).unwrap()).key
}

#[derive(Clone, Debug)]
struct Round {
    changes: Vec<(usize, Choice)>,
    /// Inodes of the network namespaces; 0: there is none.
    netns: [u8; 2],
    is_wrong: bool,
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let change = || (0..PLACES, any::<Choice>());
    let first = prop::collection::vec(change(), 0..60);
    let few = prop::collection::vec(change(), 0..4);
    let round = (prop_oneof![1 => first, 6 => few], [0..3_u8, 0..2_u8], prop::bool::weighted(0.1));
    let round = round.prop_map(|(changes, netns, is_wrong)| Round { changes, netns, is_wrong });
    prop::collection::vec(round, 1..14)
}

/// What of a snapshot does not depend on how often it was made: without ids of lists and generations.
fn destinations(mesh: &Mesh) -> Vec<(IpAddr, Target)> {
    let plain = |(address, target): (&IpAddr, &Target)| {
        let target = match target {
            Target::Service(service) => {
                let mut service = Service::clone(service);
                service.ports.iter_mut().for_each(|port| port.list = 0);
                Target::Service(Arc::new(service))
            }
            Target::Workload(workload) => Target::Workload(Arc::clone(workload)),
        };
        (*address, target)
    };
    mesh.destinations.iter().map(plain).collect()
}

/// The slots that were raised, and the addresses of services with another list at a port.
fn news(before: &Mesh, now: &Mesh) -> (Vec<u32>, Vec<(IpAddr, u16)>) {
    let raised = now.generations.differences(&before.generations).into_iter().map(|(slot, ..)| *slot).collect();
    let lists = |mesh: &Mesh| -> BTreeMap<(IpAddr, u16), u32> {
        let services = mesh.destinations.iter().filter_map(|(address, target)| match target {
            Target::Service(service) => Some((*address, Arc::clone(service))),
            Target::Workload(_) => None,
        });
        let ports = |(address, service): (IpAddr, Arc<Service>)| {
            service.ports.iter().map(|port| ((address, port.port), port.list)).collect::<Vec<_>>()
        };
        services.flat_map(ports).collect()
    };
    let known = lists(before);
    let others = lists(now).into_iter().filter(|(at, list)| known.get(at) != Some(list)).map(|(at, _)| at).collect();
    (raised, others)
}

/// Workloads that are the very same as before.
fn kept(before: &Mesh, now: &Mesh) -> Vec<String> {
    let is_kept =
        |workload: &&Arc<Workload>| before.workloads.get(&workload.name).is_some_and(|w| Arc::ptr_eq(w, workload));
    now.workloads.values().filter(is_kept).map(|workload| workload.name.to_string()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn snapshots_are_those_made_anew(rounds in rounds()) {
        let (mut index, mut reference) = (Index::new(Site::here(100)), Reference::new(Site::here(500)));
        let mut objects: BTreeMap<Key, Loaded> = BTreeMap::new();
        for Round { changes, netns, is_wrong } in rounds {
            let changes: Vec<_> = changes
                .into_iter()
                .map(|(place, choice)| match text(place, choice) {
                    Some(text) => Change::Put(object(&text)),
                    None => Change::Remove(key(place)),
                })
                .collect();
            for change in &changes {
                match change {
                    Change::Put(loaded) => { objects.insert(loaded.key.clone(), loaded.clone()); }
                    Change::Remove(key) => { objects.remove(key); }
                }
            }
            let inodes = (1..).zip(netns).filter(|(_, inode)| *inode > 0);
            let inodes = inodes.map(|(n, inode)| (format!("/run/netns/web-{n}").into(), inode.into()));
            let wrong = is_wrong.then(|| problems::problem(crate::model::Reason::BadField, &object(&pod(1, [1; 6])), "f", "m".into()));
            let surroundings = Surroundings {
                problems: wrong.into_iter().collect(),
                netns: Arc::new(inodes.collect()),
                source: SourceState { objects: objects.len(), ..SourceState::default() },
            };
            let (before, reference_before) = (Arc::clone(&index.mesh), reference.mesh.clone());
            let published = index.apply(changes, &surroundings);
            let is_new = reference.update(objects.values().cloned().collect(), &surroundings);
            prop_assert_eq!(published.is_some(), is_new);
            let (now, expected) = (&index.mesh, &reference.mesh);
            prop_assert_eq!(now.version, expected.version);
            prop_assert_eq!(&now.node, &expected.node);
            prop_assert_eq!(&now.namespaces, &expected.namespaces);
            prop_assert_eq!(&now.workloads, &expected.workloads);
            prop_assert_eq!(&now.local, &expected.local);
            prop_assert_eq!(destinations(now), destinations(expected));
            prop_assert_eq!(&now.problems, &expected.problems);
            prop_assert_eq!(&now.netns, &expected.netns);
            prop_assert_eq!(now.policies, expected.policies);
            prop_assert_eq!(news(&before, now), news(&reference_before, expected));
            prop_assert_eq!(kept(&before, now), kept(&reference_before, expected));
        }
    }
}
