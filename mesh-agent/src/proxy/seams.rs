//! What the proxy asks of the kernel. The product's answer is the datapath's maps; tests have their own.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::direct::Cacheable;
use crate::model::OrigDst;

/// The kernel, as a worker sees it.
pub trait Kernel {
    /// What the client of an accepted socket asked for, and the backend that was drawn for it already, if any. `None` if
    /// the connection was not captured.
    fn original(&self, downstream: &TcpStream) -> Option<(OrigDst, Option<SocketAddr>)>;

    /// Lets the app that `upstream` is about to be connected to see `client` as its peer.
    fn show_client(&mut self, upstream: &socket2::Socket, client: SocketAddr) -> std::io::Result<()>;

    /// Lets later connections of the source in `slot` to `destination` go without the agent.
    fn remember(
        &mut self,
        slot: u32,
        source_generation: u32,
        destination: OrigDst,
        way: &Cacheable<'_>,
    ) -> std::io::Result<()>;

    /// Says that this worker lives: CLOCK_MONOTONIC now and how late its loop ran, in nanoseconds. `None`: no more
    /// connections, please.
    fn beat(&mut self, worker: u32, beat: Option<(u64, u64)>) -> std::io::Result<()>;
}
