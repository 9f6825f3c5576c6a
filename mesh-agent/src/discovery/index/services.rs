//! Services, their EndpointSlices and the pods behind them.

use std::{net::IpAddr, sync::Arc};

use super::{Counter, alike::Alike, objects::Objects};
use crate::{
    balance,
    discovery::object::{Kind, Object, ServiceSpec, Slice},
    model::{Endpoint, Mesh, ObjectName, Service, ServicePort, Workload},
};

/// A service of one address family.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub(super) name: ObjectName,
    pub(super) is_ipv6: bool,
}

/// All that services are joined with.
pub(super) struct Join<'a> {
    pub(super) objects: &'a Objects,
    /// With this node, and with the pods at their addresses.
    pub(super) mesh: &'a Mesh,
    pub(super) alike: Alike<'a>,
}

impl Join<'_> {
    /// The service as it is now; `before` itself if nothing of it changed. Lists of endpoints that are alike keep
    /// their id.
    pub(super) fn service(
        &self,
        name: &Name,
        spec: &ServiceSpec,
        addresses: Vec<IpAddr>,
        before: Option<&Arc<Service>>,
        lists: &mut Counter,
    ) -> Arc<Service> {
        let slices = self.objects.slices_of(&name.name);
        let port = |(port, port_name): &(u16, Arc<str>)| {
            let endpoints = self.endpoints(name, spec, port_name, &slices);
            let before = before.and_then(|before| before.ports.iter().find(|before| before.port == *port));
            let (endpoints, list) = match before {
                Some(before) if self.alike.lists(&before.endpoints, &endpoints) => {
                    (Arc::clone(&before.endpoints), before.list)
                }
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

    fn endpoints(&self, name: &Name, spec: &ServiceSpec, port_name: &str, slices: &[Arc<Object>]) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        for slice in slices.iter().filter_map(|object| slice(object)) {
            for (_, port) in slice.ports.iter().filter(|(slice_port, _)| **slice_port == *port_name) {
                let own_family = slice.endpoints.iter().filter(|endpoint| endpoint.address.is_ipv6() == name.is_ipv6);
                endpoints.extend(own_family.map(|endpoint| {
                    let workload = self.mesh.workload_at(endpoint.address);
                    let node = endpoint.node.clone().or_else(|| Some(self.node_of(workload?)));
                    let zone = endpoint.zone.clone().or_else(|| self.zone_of(node.as_ref()?));
                    Endpoint {
                        address: endpoint.address,
                        port: *port,
                        ready: endpoint.ready,
                        draining: endpoint.draining,
                        zone,
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
            endpoints.retain(|endpoint| endpoint.node.as_deref() == Some(&*self.mesh.node.name));
        }
        balance::candidates(endpoints, spec.distribution, &self.mesh.node.name, self.mesh.node.zone.as_deref())
    }

    fn node_of(&self, workload: &Workload) -> Arc<str> {
        workload.node.clone().unwrap_or_else(|| Arc::clone(&self.mesh.node.name))
    }

    fn zone_of(&self, node: &Arc<str>) -> Option<Arc<str>> {
        let name = ObjectName { namespace: Arc::default(), name: Arc::clone(node) };
        match &**self.objects.object(Kind::Node, &name)? {
            Object::Node(spec) => spec.zone.clone(),
            _ => None,
        }
    }
}

fn slice(object: &Object) -> Option<&Slice> {
    match object {
        Object::EndpointSlice(slice) => Some(slice),
        _ => None,
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
