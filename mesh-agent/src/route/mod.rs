//! Where does this destination lead? Pure.

use std::sync::Arc;

use crate::model::{Mesh, OrigDst, Reason, Service, ServicePort, Target, UpstreamAddr, Workload};

pub mod transport;

#[cfg(test)]
mod tests;

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To an address that the mesh does not know: as asked for.
    Passthrough(UpstreamAddr),
    /// To a pod by its own address.
    Workload {
        /// The pod.
        workload: Arc<Workload>,
        /// Its address and the port asked for.
        upstream: UpstreamAddr,
    },
    /// To one of the endpoints of a service ([`crate::balance::pick`]); there is at least one.
    Service {
        /// The service.
        service: Arc<Service>,
        /// The port of it that was asked for, with its endpoints.
        port: ServicePort,
    },
}

/// Finds out where `destination` leads.
///
/// # Errors
/// [`Reason::UnknownServicePort`] and [`Reason::NoEndpoints`]: the connection has to be refused.
pub fn select(mesh: &Mesh, destination: OrigDst) -> Result<Route, Reason> {
    let OrigDst(address) = destination;
    match mesh.destination(address.ip().to_canonical()) {
        None => Ok(Route::Passthrough(UpstreamAddr(address))),
        Some(Target::Workload(workload)) => {
            Ok(Route::Workload { workload: Arc::clone(workload), upstream: UpstreamAddr(address) })
        }
        Some(Target::Service(service)) => {
            let port = service.ports.iter().find(|port| port.port == address.port());
            match port {
                None => Err(Reason::UnknownServicePort),
                Some(port) if port.endpoints.is_empty() => Err(Reason::NoEndpoints),
                Some(port) => Ok(Route::Service { service: Arc::clone(service), port: port.clone() }),
            }
        }
    }
}
