//! The accept loop: one task per listener.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::{TcpListener, TcpStream};

use super::{Pod, Worker, inbound, outbound};
use crate::{model::Reason, telemetry::Direction};

/// How long to wait before accepting again when there are no descriptors: waiting connections stay in the queue.
const PAUSE: Duration = Duration::from_millis(100);
/// How often that is worth a line in the log.
const SAY_AFTER: Duration = Duration::from_secs(10);

/// A connection that was just accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The socket. It has TCP_NODELAY and keepalive from its listener.
    pub socket: TcpStream,
    /// Its peer.
    pub peer: SocketAddr,
}

/// Accepts until it is aborted.
pub(super) async fn run(worker: Rc<Worker>, pod: Arc<Pod>, listener: Rc<TcpListener>, direction: Direction) {
    let mut said: Option<Instant> = None;
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => {
                let accepted = Accepted { socket, peer: canonical(peer) };
                match direction {
                    Direction::Outbound => worker.serve(&pod, outbound::serve(worker.clone(), pod.clone(), accepted)),
                    Direction::Inbound => worker.serve(&pod, inbound::serve(worker.clone(), pod.clone(), accepted)),
                }
            }
            Err(error) if is_exhausted(&error) => {
                worker.counters.ended(Reason::FdLimit);
                if said.is_none_or(|said| said.elapsed() >= SAY_AFTER) {
                    said = Some(Instant::now());
                    tracing::warn!(pod = %pod.name, %error, reason = Reason::FdLimit.code(), "cannot accept; waiting");
                }
                tokio::time::sleep(PAUSE).await;
            }
            // The peer has gone again (ECONNABORTED), or a network error is pending on the new socket: accept(2).
            Err(error) => tracing::debug!(pod = %pod.name, %error, "accept"),
        }
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Without v4-mapping: the listeners are dual-stack.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
