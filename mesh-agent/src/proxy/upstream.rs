//! The upstream end of a connection.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use tokio::net::TcpStream;

use super::{
    Error, Pod, Worker, hbone, relay,
    transport::{Mutual, Transport},
};
use crate::{
    model::{OrigDst, UpstreamAddr},
    net::connect,
    telemetry::{Connection, Direction, Wire},
};

/// What an outbound connection is relayed to.
#[derive(Debug)]
pub(super) enum Upstream {
    /// A socket.
    Plain(TcpStream),
    /// A tunnel to another node.
    Tunnel(Box<Tunnel>),
}

/// A tunnel, and who is at its ends.
#[derive(Debug)]
pub(super) struct Tunnel {
    stream: hbone::Stream,
    to: Mutual,
    trace: u128,
}

/// What waits for its downstream, on whichever worker that comes.
pub(super) enum Early {
    /// A socket, which no runtime knows.
    Plain(std::net::TcpStream),
    /// A tunnel, whose connection stays with the worker that has made it.
    Tunnel(Box<Tunnel>),
}

/// Both ends. Dropped in the middle of things, they answer with RST, so that nobody takes an accident for an end.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) downstream: TcpStream,
    pub(super) upstream: Option<Upstream>,
    clean: bool,
}

impl Sockets {
    pub(super) fn new(downstream: TcpStream) -> Self {
        Self { downstream, upstream: None, clean: false }
    }

    /// Both ends have said all they wanted.
    pub(super) fn close(mut self) {
        self.clean = true;
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        if !self.clean {
            connect::reset_on_close(&self.downstream);
            match &mut self.upstream {
                Some(Upstream::Plain(upstream)) => connect::reset_on_close(upstream),
                Some(Upstream::Tunnel(tunnel)) => tunnel.stream.reset(),
                None => {}
            }
        }
    }
}

/// Connects from the pod to anywhere.
pub(super) async fn connect(worker: &Worker, pod: &Pod, to: UpstreamAddr) -> Result<TcpStream, Error> {
    let socket = connect::socket(&pod.netns, to.0.ip()).map_err(Error::Connect)?;
    let connecting = connect::start(socket, to.0).map_err(Error::Connect)?;
    connecting.established(worker.config.connect_timeout).await.map_err(Error::Connect)
}

/// Opens what a connection of `client`, an app of the pod, is to be relayed to.
pub(super) async fn open(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    client: SocketAddr,
    transport: Transport,
) -> Result<Upstream, Error> {
    match transport {
        Transport::Plain(to) => connect(worker, pod, to).await.map(Upstream::Plain),
        // Boxed: most connections are not of this kind, and their tasks shall be small.
        Transport::Mutual(to) => {
            Box::pin(async move {
                let (trace, span) = worker.trace();
                let traceparent = hbone::headers::traceparent(trace, span);
                let stream = worker.pool.open(worker, pod, &to, client, &traceparent).await?;
                Ok(Upstream::Tunnel(Box::new(Tunnel { stream, to, trace })))
            })
            .await
        }
    }
}

/// Lets another worker have it.
pub(super) fn give(upstream: Upstream) -> Result<Early, Error> {
    match upstream {
        Upstream::Plain(stream) => stream.into_std().map(Early::Plain).map_err(Error::Connect),
        Upstream::Tunnel(tunnel) => Ok(Early::Tunnel(tunnel)),
    }
}

/// Takes over what was opened elsewhere.
pub(super) fn adopt(early: Early) -> Result<Upstream, Error> {
    match early {
        Early::Plain(stream) => TcpStream::from_std(stream).map(Upstream::Plain).map_err(Error::Connect),
        Early::Tunnel(tunnel) => Ok(Upstream::Tunnel(tunnel)),
    }
}

impl Upstream {
    /// Relays until both ends have ended, or one fails.
    pub(super) async fn relay(&mut self, downstream: &TcpStream, record: &mut Connection) -> Result<(), Error> {
        match self {
            Self::Plain(upstream) => relay::run(downstream, upstream, record).await,
            Self::Tunnel(tunnel) => {
                let Tunnel { stream, to, trace } = tunnel.as_mut();
                record.upstream = Some(to.destination);
                record.wire = Wire::Hbone;
                record.own = Some(Arc::clone(&to.source));
                record.peer = Some(Arc::clone(&to.expected));
                record.trace = Some(*trace);
                record.goes(crate::model::Transport::Mutual);
                Box::pin(hbone::relay::run(downstream, stream, Direction::Outbound, record)).await
            }
        }
    }
}

/// Connects within the pod to its app.
pub(super) async fn connect_to_app(
    worker: &Worker,
    pod: &Pod,
    to: OrigDst,
    client: SocketAddr,
) -> Result<TcpStream, Error> {
    let socket = connect::socket(&pod.netns, to.0.ip()).map_err(Error::Connect)?;
    if to.0.is_ipv4() {
        connect::bind_loopback(&socket, worker.random()).map_err(Error::Connect)?;
    }
    worker.kernel.borrow_mut().show_client(&socket, client).map_err(Error::Connect)?;
    let connecting = connect::start(socket, to.0).map_err(Error::Connect)?;
    connecting.established(worker.config.connect_timeout).await.map_err(Error::Connect)
}
