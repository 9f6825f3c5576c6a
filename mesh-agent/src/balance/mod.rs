//! Which endpoint? Pure.

use crate::model::{Endpoint, TrafficDistribution};

#[cfg(test)]
mod tests;

/// The endpoints that connections may go to, of all that a service port has.
///
/// Ready ones, or else (none ready) those that still serve while they terminate. Of these, what `distribution` prefers
/// as seen from `node` and `zone`; a preference that nobody meets does not count.
pub fn candidates(
    endpoints: Vec<Endpoint>,
    distribution: TrafficDistribution,
    node: &str,
    zone: Option<&str>,
) -> Vec<Endpoint> {
    let usable = some_or_all(endpoints, |endpoint| endpoint.ready);
    let usable: Vec<_> = usable.into_iter().filter(|endpoint| endpoint.ready || endpoint.draining).collect();

    let same_node = |endpoint: &Endpoint| endpoint.node.as_deref() == Some(node);
    let same_zone = |endpoint: &Endpoint| zone.is_some() && endpoint.zone.as_deref() == zone;
    match distribution {
        TrafficDistribution::Any => usable,
        TrafficDistribution::PreferSameNode if usable.iter().any(same_node) => some_or_all(usable, same_node),
        TrafficDistribution::PreferSameNode | TrafficDistribution::PreferSameZone => some_or_all(usable, same_zone),
    }
}

/// One of the endpoints, all alike likely. `random` is uniform over its range.
pub fn pick(endpoints: &[Endpoint], random: u32) -> Option<&Endpoint> {
    // Scaling by multiplication needs no division and is as even as a 32-bit number can be.
    let index = (u64::from(random) * endpoints.len() as u64) >> 32;
    endpoints.get(index as usize)
}

/// Those that `wanted` holds for, or all if there are none.
fn some_or_all(endpoints: Vec<Endpoint>, wanted: impl Fn(&Endpoint) -> bool) -> Vec<Endpoint> {
    if endpoints.iter().any(&wanted) { endpoints.into_iter().filter(wanted).collect() } else { endpoints }
}
