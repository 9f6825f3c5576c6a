//! Which connections may go without the agent. Pure.

use std::net::{IpAddr, SocketAddr};

use crate::model::{Endpoint, Mesh, OrigDst, Target, Workload};

/// More backends than this are not cached; the agent balances over them.
pub const MAX_BACKENDS: usize = 256;

/// A backend, and whether it can be reached without the agent.
pub type Backend = (SocketAddr, bool);

/// A decision that the kernel may remember.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cacheable<'a> {
    /// Generation of the destination it was made on.
    pub generation: u32,
    /// Id of the list of backends; 0 where the destination is a pod itself.
    pub list: u32,
    /// The backends; empty where the destination is a pod itself.
    pub backends: &'a [Backend],
}

/// What the kernel may remember about `destination`, if anything; backends go to `backends`.
pub fn cacheable<'a>(mesh: &Mesh, destination: OrigDst, backends: &'a mut Vec<Backend>) -> Option<Cacheable<'a>> {
    let OrigDst(address) = destination;
    let known = mesh.destination(address.ip())?;
    let generation = known.generation;
    backends.clear();
    match &known.target {
        Target::Workload(workload) => is_direct(mesh, workload).then_some(Cacheable { generation, list: 0, backends }),
        Target::Service(service) => {
            let port = service.ports.iter().find(|port| port.port == address.port())?;
            if port.endpoints.len() > MAX_BACKENDS {
                return None;
            }
            backends.extend(
                port.endpoints
                    .iter()
                    .filter(|endpoint| same_family(endpoint.address, address.ip()))
                    .map(|endpoint| (SocketAddr::new(endpoint.address, endpoint.port), reaches(mesh, endpoint))),
            );
            backends.iter().any(|(_, direct)| *direct).then_some(Cacheable { generation, list: port.list, backends })
        }
    }
}

fn reaches(mesh: &Mesh, endpoint: &Endpoint) -> bool {
    endpoint.workload.as_deref().is_some_and(|workload| is_direct(mesh, workload))
}

/// An enrolled pod of this node: the kernel vouches for both ends, and no byte leaves the node.
fn is_direct(mesh: &Mesh, workload: &Workload) -> bool {
    workload.enrolled && !workload.host_network && workload.is_on(&mesh.node.name)
}

fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}
