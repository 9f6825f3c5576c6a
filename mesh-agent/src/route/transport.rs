//! Does a connection cross the node's edge, and is it to be encrypted there? Pure.

use std::net::{IpAddr, SocketAddr};

use crate::model::{Mesh, Mode, PlaintextReason, Transport, Workload};

/// Where decisions are made: the snapshot, and the addresses that are the node's own.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// The snapshot.
    pub mesh: &'a Mesh,
    /// The node's own addresses.
    pub node_addresses: &'a [IpAddr],
}

impl Here<'_> {
    /// Whether an address is on this node: its own, or that of a pod on it.
    pub fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_loopback()
            || self.node_addresses.contains(&address)
            || self.mesh.node.addresses.contains(&address)
            || self.mesh.workload_at(address).is_some_and(|workload| self.runs(workload))
    }

    /// Whether a pod is on this node.
    pub fn runs(&self, workload: &Workload) -> bool {
        workload.is_on(&self.mesh.node.name)
    }
}

/// How what an enrolled pod of this node opens is to go to `upstream`, an endpoint and not a service.
pub fn outbound(here: Here<'_>, upstream: SocketAddr) -> Transport {
    if here.has(upstream.ip()) {
        return Transport::Local;
    }
    plaintext_to(here.mesh.workload_of(upstream).map(AsRef::as_ref), upstream.port())
        .map_or(Transport::Mutual, Transport::Plaintext)
}

/// How what `source` opens to `port` of an enrolled pod of this node is to come.
pub fn inbound(here: Here<'_>, source: IpAddr, destination: Option<&Workload>, port: u16) -> Transport {
    if here.has(source) {
        return Transport::Local;
    }
    plaintext_from(here.mesh.workload_at(source).map(AsRef::as_ref), destination, port)
        .map_or(Transport::Mutual, Transport::Plaintext)
}

/// Why nobody can speak mutual TLS to `port` of the pod at an address, if so. `None` for the pod: nobody knows one there.
pub fn plaintext_to(destination: Option<&Workload>, port: u16) -> Option<PlaintextReason> {
    match destination {
        None => Some(PlaintextReason::DestinationUnknown),
        Some(workload) if !workload.enrolled => Some(PlaintextReason::DestinationNotMeshed),
        Some(workload) if workload.host_network => Some(PlaintextReason::HostNetwork),
        Some(workload) if workload.policy.mode_of(port) == Mode::Disabled => Some(PlaintextReason::ModeDisabled),
        Some(_) => None,
    }
}

/// Why the pod at an address cannot speak mutual TLS to `port` of `destination`, if so.
pub fn plaintext_from(source: Option<&Workload>, destination: Option<&Workload>, port: u16) -> Option<PlaintextReason> {
    match source {
        None => Some(PlaintextReason::SourceUnknown),
        Some(workload) if !workload.enrolled => Some(PlaintextReason::SourceNotMeshed),
        Some(workload) if workload.host_network => Some(PlaintextReason::HostNetwork),
        Some(_) => destination
            .is_some_and(|workload| workload.policy.mode_of(port) == Mode::Disabled)
            .then_some(PlaintextReason::ModeDisabled),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{InboundPolicy, ObjectName, Target};

    fn pod(name: &str, address: &str, node: &str, change: impl FnOnce(&mut Workload)) -> Workload {
        let identity = Arc::new("spiffe://cluster.local/ns/shop/sa/default".parse().unwrap());
        let mut workload = Workload::new(ObjectName::new("shop", name), identity);
        workload.addresses = vec![address.parse().unwrap()];
        workload.node = Some(node.into());
        workload.enrolled = true;
        change(&mut workload);
        workload
    }

    fn mesh() -> Mesh {
        let mut mesh = Mesh::default();
        mesh.node.name = "here".into();
        mesh.node.addresses = vec!["192.0.2.1".parse().unwrap()];
        for workload in [
            pod("near", "10.0.0.1", "here", |_| {}),
            pod("near-off", "10.0.0.2", "here", |pod| pod.enrolled = false),
            pod("far", "10.0.1.1", "there", |pod| {
                pod.policy =
                    Arc::new(InboundPolicy { ports: vec![(9090, Mode::Disabled)], ..InboundPolicy::default() });
            }),
            pod("far-off", "10.0.1.2", "there", |pod| pod.enrolled = false),
            pod("far-host", "10.0.1.3", "there", |pod| pod.host_network = true),
            pod("far-disabled", "10.0.1.4", "there", |pod| {
                pod.policy = Arc::new(InboundPolicy { mode: Mode::Disabled, ..InboundPolicy::default() });
            }),
        ] {
            let address = *workload.addresses.first().unwrap();
            mesh.destinations.insert(address, Target::Workload(Arc::new(workload)));
        }
        mesh
    }

    fn short(transport: Transport) -> &'static str {
        transport.plaintext_reason().map_or(transport.name(), PlaintextReason::code)
    }

    #[test]
    fn what_a_pod_opens() {
        let mesh = mesh();
        let here = Here { mesh: &mesh, node_addresses: &["10.77.0.1".parse().unwrap()] };
        for (to, expected) in [
            ("10.0.0.1:80", "local"),
            ("10.0.0.2:80", "local"),
            ("192.0.2.1:80", "local"),
            ("10.77.0.1:80", "local"),
            ("[::ffff:10.0.0.1]:80", "local"),
            ("10.0.1.1:80", "mutual"),
            ("10.0.1.1:9090", "mode_disabled"),
            ("10.0.1.2:80", "destination_not_meshed"),
            ("10.0.1.3:80", "host_network"),
            ("10.0.1.4:80", "mode_disabled"),
            ("198.51.100.1:443", "destination_unknown"),
            ("[2001:db8::1]:443", "destination_unknown"),
        ] {
            assert_eq!(short(outbound(here, to.parse().unwrap())), expected, "{to}");
        }
    }

    #[test]
    fn what_a_pod_gets() {
        let mesh = mesh();
        let here = Here { mesh: &mesh, node_addresses: &[] };
        let far = mesh.workload_at("10.0.1.1".parse().unwrap()).map(AsRef::as_ref);
        for (from, port, expected) in [
            ("10.0.0.2", 80, "local"),
            ("192.0.2.1", 80, "local"),
            ("10.0.1.1", 80, "mutual"),
            ("10.0.1.1", 9090, "mode_disabled"),
            ("10.0.1.2", 80, "source_not_meshed"),
            ("10.0.1.3", 80, "host_network"),
            ("198.51.100.1", 9090, "source_unknown"),
        ] {
            assert_eq!(short(inbound(here, from.parse().unwrap(), far, port)), expected, "{from} {port}");
        }
    }
}
