//! Which connections may go without the agent. Pure.

use std::net::{IpAddr, SocketAddr};

use crate::{
    model::{Mesh, OrigDst, Target, Workload},
    policy::{self, Client},
};

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

/// What the kernel may remember about `destination` as `client` asks for it, if anything; backends go to `backends`.
///
/// A decision is remembered only if nothing forbids the connection, and nothing is to be noted of it.
pub fn cacheable<'a>(
    mesh: &Mesh,
    client: &Client,
    destination: OrigDst,
    backends: &'a mut Vec<Backend>,
) -> Option<Cacheable<'a>> {
    let OrigDst(address) = destination;
    let known = mesh.destination(address.ip())?;
    let generation = mesh.generation_of(address.ip());
    backends.clear();
    match known {
        Target::Workload(workload) => {
            is_direct(mesh, client, workload, address).then_some(Cacheable { generation, list: 0, backends })
        }
        Target::Service(service) => {
            let port = service.ports.iter().find(|port| port.port == address.port())?;
            if port.endpoints.len() > MAX_BACKENDS {
                return None;
            }
            backends.extend(port.endpoints.iter().filter(|endpoint| same_family(endpoint.address, address.ip())).map(
                |endpoint| {
                    let at = SocketAddr::new(endpoint.address, endpoint.port);
                    (at, endpoint.workload.as_deref().is_some_and(|to| is_direct(mesh, client, to, at)))
                },
            ));
            backends.iter().any(|(_, direct)| *direct).then_some(Cacheable { generation, list: port.list, backends })
        }
    }
}

/// To an enrolled pod of this node: the kernel vouches for both ends, and no byte leaves the node.
fn is_direct(mesh: &Mesh, client: &Client, target: &Workload, address: SocketAddr) -> bool {
    policy::is_governed(mesh, target) && policy::is_unremarkable(mesh, client, target, address)
}

fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}
