//! Services, their EndpointSlices and the pods behind them.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::{Counter, Input};
use crate::{
    balance,
    discovery::object::{Object, ServiceSpec, Slice},
    model::{Endpoint, Node, ObjectName, Service, ServicePort, Workload},
};

/// A service of one address family.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub(super) name: ObjectName,
    pub(super) is_ipv6: bool,
}

/// All that services are joined with.
pub(super) struct Join<'a> {
    pub(super) node: &'a Node,
    pub(super) workloads: &'a HashMap<IpAddr, Arc<Workload>>,
    zones: HashMap<&'a str, &'a Arc<str>>,
    slices: HashMap<(&'a str, &'a str), Vec<&'a Slice>>,
}

impl<'a> Join<'a> {
    pub(super) fn new(input: &'a Input, node: &'a Node, workloads: &'a HashMap<IpAddr, Arc<Workload>>) -> Self {
        let mut zones = HashMap::new();
        let mut slices: HashMap<_, Vec<_>> = HashMap::new();
        for loaded in &input.objects {
            let name = &loaded.key.name;
            match &*loaded.object {
                Object::Node(spec) => zones.extend(spec.zone.as_ref().map(|zone| (&*name.name, zone))),
                Object::EndpointSlice(slice) => {
                    if let Some(service) = &slice.service {
                        slices.entry((&*name.namespace, &**service)).or_default().push(slice);
                    }
                }
                _ => {}
            }
        }
        Self { node, workloads, zones, slices }
    }

    /// The service as it is now; `before` itself if nothing of it changed. Lists of endpoints for which `alike` holds
    /// keep their id.
    pub(super) fn service(
        &self,
        name: &Name,
        spec: &ServiceSpec,
        addresses: Vec<IpAddr>,
        before: Option<&Arc<Service>>,
        alike: &dyn Fn(&[Endpoint], &[Endpoint]) -> bool,
        lists: &mut Counter,
    ) -> Arc<Service> {
        let port = |(port, port_name): &(u16, Arc<str>)| {
            let endpoints = self.endpoints(name, spec, port_name);
            let before = before.and_then(|before| before.ports.iter().find(|before| before.port == *port));
            let (endpoints, list) = match before {
                Some(before) if alike(&before.endpoints, &endpoints) => (Arc::clone(&before.endpoints), before.list),
                _ => (endpoints.into(), lists.next()),
            };
            ServicePort { port: *port, name: Arc::clone(port_name), endpoints, list }
        };
        let ports = spec.ports.iter().map(port).collect();
        let service = Service { name: name.name.clone(), addresses, ports, distribution: spec.distribution };
        match before {
            Some(before) if is_same(before, &service) => Arc::clone(before),
            _ => Arc::new(service),
        }
    }

    fn endpoints(&self, name: &Name, spec: &ServiceSpec, port_name: &Arc<str>) -> Vec<Endpoint> {
        let slices = self.slices.get(&(&*name.name.namespace, &*name.name.name)).map_or(&[][..], Vec::as_slice);
        let mut endpoints = Vec::new();
        for slice in slices {
            for (_, port) in slice.ports.iter().filter(|(slice_port, _)| slice_port == port_name) {
                let own_family = slice.endpoints.iter().filter(|endpoint| endpoint.address.is_ipv6() == name.is_ipv6);
                endpoints.extend(own_family.map(|endpoint| {
                    let workload = self.workloads.get(&endpoint.address);
                    let node = endpoint.node.clone().or_else(|| Some(self.node_of(workload?)));
                    let zone = node.as_deref().and_then(|node| self.zones.get(node).copied());
                    Endpoint {
                        address: endpoint.address,
                        port: *port,
                        ready: endpoint.ready,
                        draining: endpoint.draining,
                        zone: endpoint.zone.as_ref().or(zone).cloned(),
                        node,
                        workload: workload.cloned(),
                    }
                }));
            }
        }
        // While an endpoint moves from slice to slice it is in both; the order must not depend on that of the files.
        endpoints.sort_by_key(|endpoint| (endpoint.address, endpoint.port, !endpoint.ready, !endpoint.draining));
        endpoints.dedup_by_key(|endpoint| (endpoint.address, endpoint.port));
        if spec.local_only {
            endpoints.retain(|endpoint| endpoint.node.as_deref() == Some(&*self.node.name));
        }
        balance::candidates(endpoints, spec.distribution, &self.node.name, self.node.zone.as_deref())
    }

    fn node_of(&self, workload: &Workload) -> Arc<str> {
        workload.node.clone().unwrap_or_else(|| Arc::clone(&self.node.name))
    }
}

/// Whether nothing differs; lists are told apart by their ids.
fn is_same(a: &Service, b: &Service) -> bool {
    let port = |port: &ServicePort| (port.port, Arc::clone(&port.name), port.list);
    a.name == b.name
        && a.addresses == b.addresses
        && a.distribution == b.distribution
        && a.ports.iter().map(port).eq(b.ports.iter().map(port))
}
