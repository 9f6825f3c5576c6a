//! The spine of an inbound connection: what somebody opened to a workload, in the order in which it happens.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use super::{Accepted, Error, Pod, Worker, accept::canonical, permit, relay, upstream, worker};
use crate::{
    model::OrigDst,
    telemetry::{Connection, Direction},
};

/// Serves one connection; it ends in exactly one record.
pub(super) async fn serve(worker: Rc<Worker>, pod: Arc<Pod>, accepted: Accepted) {
    let mut record = worker.open(&pod, Direction::Inbound, accepted.peer);
    let peer = accepted.peer;
    let mut sockets = upstream::Sockets::new(accepted.socket);
    let result = run(&worker, &pod, peer, &mut sockets, &mut record).await;
    worker::end(record, sockets, result);
}

async fn run(
    worker: &Worker,
    pod: &Pod,
    peer: SocketAddr,
    sockets: &mut upstream::Sockets,
    record: &mut Connection,
) -> Result<(), Error> {
    // sk_lookup steers without rewriting: the socket's own address is the original destination.
    let destination = OrigDst(canonical(sockets.downstream.local_addr().map_err(Error::Downstream)?));
    record.original = Some(destination.0);

    // Only what comes from outside the pod is steered here. The rest dials the agent's own port: going on would dial it
    // again, without end.
    if peer.ip().is_loopback() || peer.ip() == destination.0.ip() {
        return Err(Error::NoOriginalDestination);
    }

    // Plaintext from somebody the kernel does not vouch for.
    let flow = permit::from_stranger(pod, peer.ip(), destination.0);
    permit::check(worker, &worker.mesh(), &flow)?;
    worker.follow(pod, flow);

    // To the app, over the pod's loopback; the app sees the client.
    record.upstream = Some(destination.0);
    let upstream = upstream::connect_to_app(worker, pod, destination, peer).await?;
    relay::run(&sockets.downstream, sockets.upstream.insert(upstream), record).await
}
