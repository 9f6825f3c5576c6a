//! The spine of an outbound connection: what a workload opened, in the order in which it happens.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use super::{
    Accepted, Error, Pod, Worker,
    accept::canonical,
    direct,
    patience::Patience,
    permit,
    transport::{self, Transport},
    upstream::{self, Upstream},
    worker,
};
use crate::{
    balance,
    model::{Endpoint, Mesh, OrigDst, Reason, UpstreamAddr},
    route::{self, Route},
    telemetry::{Connection, Direction},
};

/// Serves one connection; it ends in exactly one record.
pub(super) async fn serve(worker: Rc<Worker>, pod: Arc<Pod>, accepted: Accepted) {
    let mut record = worker.open(&pod, Direction::Outbound, accepted.peer);
    let peer = accepted.peer;
    let mut sockets = upstream::Sockets::new(accepted.socket);
    let result = run(&worker, &pod, peer, &mut sockets, &mut record).await;
    worker::end(record, sockets, result);
}

async fn run(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    peer: SocketAddr,
    sockets: &mut upstream::Sockets,
    record: &mut Connection,
) -> Result<(), Error> {
    // What did the app ask for? Without an answer nothing is guessed.
    let original = worker.kernel.borrow().original(&sockets.downstream).ok_or(Error::NoOriginalDestination)?;
    let destination = original.destination;
    record.original = Some(destination.0);

    // Connect from the pod's own namespace, unless that was done before the app's handshake was let go on.
    let early = if original.held { worker.held.claim((pod.slot, peer)).await } else { None };
    let upstream = if let Some(early) = early {
        upstream::adopt(early?)?
    } else {
        // Where does it lead, may it, and does it answer? What is found out holds for the next one, too.
        let result = reach(worker, pod, peer, destination, original.chosen, &mut record.upstream).await;
        worker.learn(pod, destination, &result);
        result?
    };

    // Policies may have changed since it was allowed, and they may change while it is open.
    if let Upstream::Plain(upstream) = &upstream {
        let endpoint = canonical(upstream.peer_addr().map_err(Error::Connect)?);
        permit::follow(worker, pod, endpoint)?;
        worker.goes_unencrypted(pod, record, endpoint);
    }
    sockets.upstream.insert(upstream).relay(&sockets.downstream, record).await
}

/// Decides, and connects. An agent that is not there is waited for; meanwhile everything may have changed.
pub(super) async fn reach(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    client: SocketAddr,
    destination: OrigDst,
    mut drawn: Option<SocketAddr>,
    reached: &mut Option<SocketAddr>,
) -> Result<Upstream, Error> {
    let mut patience = Patience::default();
    loop {
        let transport = decide(worker, pod, destination, drawn)?;
        *reached = Some(transport.destination());
        let result = upstream::open(worker, pod, client, transport).await;
        let Err(error) = &result else { return result };
        let is_first = patience.is_first();
        let Some(pause) = patience.after(error, Instant::now()) else { return result };
        if is_first {
            worker.counters.peer_waits.add(1);
            tracing::debug!(pod = %pod.name, %destination, at = ?reached, "waits for the agent there");
        }
        // Another endpoint may be better off.
        drawn = None;
        tokio::time::sleep(pause).await;
    }
}

/// Route, balance, policy and transport, all on one snapshot. Where it may, the next one goes direct.
fn decide(worker: &Worker, pod: &Pod, destination: OrigDst, drawn: Option<SocketAddr>) -> Result<Transport, Error> {
    let mesh = &worker.mesh();
    let (upstream, target) = match route::select(mesh, destination).map_err(Error::Route)? {
        Route::Passthrough(upstream) => (upstream, None),
        Route::Workload { workload, upstream } => (upstream, Some(workload)),
        Route::Service { port, .. } => {
            let endpoint = pick(&port.endpoints, drawn, worker.random()).ok_or(Error::Route(Reason::NoEndpoints))?;
            (UpstreamAddr(SocketAddr::new(endpoint.address, endpoint.port)), endpoint.workload.clone())
        }
    };
    // What leaves the node is for the agent there to judge.
    if let Some(flow) = permit::from_pod(mesh, pod, target.as_deref(), upstream.0) {
        permit::check(worker, mesh, &flow)?;
    }
    remember(worker, mesh, pod, destination);
    let source = mesh.workload(&pod.name).map(Arc::as_ref);
    Ok(transport::choose(mesh, source, target.as_deref(), upstream))
}

/// The endpoint that the connect hook drew, if it is one still; otherwise another.
fn pick(endpoints: &[Endpoint], drawn: Option<SocketAddr>, random: u32) -> Option<&Endpoint> {
    drawn
        .and_then(|drawn| endpoints.iter().find(|e| e.address == drawn.ip() && e.port == drawn.port()))
        .or_else(|| balance::pick(endpoints, random))
}

/// Lets the kernel answer the next time, where it may.
fn remember(worker: &Worker, mesh: &Mesh, pod: &Pod, destination: OrigDst) {
    if !worker.config.direct || worker.has_yielded.get() {
        return;
    }
    let mut backends = worker.backends.borrow_mut();
    let Some(way) = direct::cacheable(mesh, &permit::client(mesh, pod, destination.0), destination, &mut backends)
    else {
        return;
    };
    if let Err(error) = worker.kernel.borrow_mut().remember(pod.slot, pod.generation(), destination, &way) {
        tracing::debug!(pod = %pod.name, %destination, %error, "a decision is not cached");
    }
}
