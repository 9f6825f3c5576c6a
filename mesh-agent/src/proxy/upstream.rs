//! The upstream end of a connection.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::{Error, Pod, Worker};
use crate::{
    model::{OrigDst, UpstreamAddr},
    net::connect,
};

/// Both ends. Dropped in the middle of things, they answer with RST, so that nobody takes an accident for an end.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) downstream: TcpStream,
    pub(super) upstream: Option<TcpStream>,
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
            if let Some(upstream) = &self.upstream {
                connect::reset_on_close(upstream);
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

/// Takes over a connection that was made elsewhere.
pub(super) fn adopt(stream: std::net::TcpStream) -> Result<TcpStream, Error> {
    TcpStream::from_std(stream).map_err(Error::Connect)
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
