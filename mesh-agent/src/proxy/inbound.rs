//! The spine of an inbound connection: what somebody opened to a workload, in the order in which it happens.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use super::{Accepted, Error, Pod, Worker, accept::canonical, hbone, permit, upstream, worker};
use crate::{
    model::OrigDst,
    telemetry::{Connection, Direction},
};

/// Serves one connection; it ends in exactly one record, or in one for each connection that comes through it.
pub(super) async fn serve(worker: Rc<Worker>, pod: Arc<Pod>, accepted: Accepted) {
    // sk_lookup steers without rewriting: the socket's own address is the original destination.
    let asked = accepted.socket.local_addr().map(canonical);
    if let Ok(local) = &asked
        && local.port() == hbone::PORT
    {
        // Boxed: most connections are not of this kind, and their tasks shall be small.
        return Box::pin(hbone::server::serve(worker, pod, accepted, *local)).await;
    }
    let mut record = worker.open(&pod, Direction::Inbound, accepted.peer);
    let peer = accepted.peer;
    let mut sockets = upstream::Sockets::new(accepted.socket);
    let result = match asked {
        Ok(asked) => run(&worker, &pod, peer, OrigDst(asked), &mut sockets, &mut record).await,
        Err(error) => Err(Error::Downstream(error)),
    };
    worker::end(record, sockets, result);
}

async fn run(
    worker: &Worker,
    pod: &Pod,
    peer: SocketAddr,
    destination: OrigDst,
    sockets: &mut upstream::Sockets,
    record: &mut Connection,
) -> Result<(), Error> {
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
    worker.comes_unencrypted(pod, record, peer, destination);
    sockets.upstream.insert(upstream::Upstream::Plain(upstream)).relay(&sockets.downstream, record).await
}
