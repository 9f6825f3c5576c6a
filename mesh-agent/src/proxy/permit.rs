//! May this connection be? Asked when it is opened; what is allowed is followed, so that a change of policy ends it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Error, Pod, Worker};
use crate::{
    model::{Identity, Mesh, Outcome, Reason, Workload},
    policy::{self, Client, Flow, Verdict},
};

/// The connection of a pod to `upstream`, if that is of a workload that this agent governs.
pub(super) fn from_pod(mesh: &Mesh, pod: &Pod, target: Option<&Workload>, upstream: SocketAddr) -> Option<Flow> {
    let target = target.filter(|target| policy::is_governed(mesh, target))?;
    Some(Flow { client: client(mesh, pod, upstream), target: target.name.clone(), destination: upstream })
}

/// A pod as a client. One that is no longer in the mesh is a stranger.
pub(super) fn client(mesh: &Mesh, pod: &Pod, upstream: SocketAddr) -> Client {
    let mut addresses = pod.addresses();
    let Some(source) = mesh.workload(&pod.name) else {
        let own = addresses.iter().find(|address| address.is_ipv4() == upstream.is_ipv4());
        return Client::Stranger { address: own.copied().unwrap_or([0; 4].into()) };
    };
    if addresses.is_empty() {
        addresses = source.addresses.as_slice().into();
    }
    Client::Pod { name: pod.name.clone(), identity: Arc::clone(&source.identity), addresses }
}

/// The plaintext connection of somebody nobody vouches for to a pod.
pub(super) fn from_stranger(pod: &Pod, peer: IpAddr, destination: SocketAddr) -> Flow {
    Flow { client: Client::Stranger { address: peer }, target: pod.name.clone(), destination }
}

/// The connection of somebody who has shown a certificate to a pod.
pub(super) fn from_certified(pod: &Pod, identity: &Arc<Identity>, peer: IpAddr, destination: SocketAddr) -> Flow {
    let client = Client::Certified { identity: Arc::clone(identity), address: peer };
    Flow { client, target: pod.name.clone(), destination }
}

/// Asks, and notes what is to be noted.
pub(super) fn check(worker: &Worker, mesh: &Mesh, flow: &Flow) -> Result<(), Error> {
    let decision = policy::review(mesh, flow);
    worker.note(mesh, flow, &decision, Outcome::Denied);
    match decision.verdict {
        Verdict::Allowed { .. } => Ok(()),
        Verdict::Denied { reason, .. } => Err(Error::Refused(reason)),
    }
}

/// Asks again and has the connection of this task followed from now on: it ends when a later snapshot forbids it.
pub(super) fn follow(worker: &Worker, pod: &Pod, upstream: SocketAddr) -> Result<(), Error> {
    let mesh = worker.mesh();
    let target = mesh.workload_of(upstream).map(|target| &**target);
    let Some(flow) = from_pod(&mesh, pod, target, upstream) else { return Ok(()) };
    let decision = policy::review(&mesh, &flow);
    if !decision.verdict.is_allowed() {
        worker.note(&mesh, &flow, &decision, Outcome::Ended);
        return Err(Error::Refused(Reason::PolicyChanged));
    }
    worker.follow(pod, flow);
    Ok(())
}
