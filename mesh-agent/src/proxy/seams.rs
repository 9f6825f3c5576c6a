//! What the proxy asks of the kernel. The product's answer is the datapath's maps; tests have their own.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::TcpStream;

use super::direct::Cacheable;
use crate::model::{OrigDst, Reachable};

/// What an accepted socket brings with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// What its client asked for.
    pub destination: OrigDst,
    /// The backend that was drawn for it already, if any.
    pub chosen: Option<SocketAddr>,
    /// Whether its handshake was held until the destination had answered: the upstream connection is there already.
    pub held: bool,
}

/// The kernel, as a worker sees it.
pub trait Kernel {
    /// What an accepted socket brings with it. `None` if the connection was not captured.
    fn original(&self, downstream: &TcpStream) -> Option<Original>;

    /// Says whether `destination` answers the workload in `slot`, for `valid` from now on.
    fn set_reach(&mut self, slot: u32, destination: OrigDst, reachable: Reachable, valid: Duration) -> io::Result<()>;

    /// Lets the app that `upstream` is about to be connected to see `client` as its peer.
    fn show_client(&mut self, upstream: &socket2::Socket, client: SocketAddr) -> io::Result<()>;

    /// Lets later connections of the source in `slot` to `destination` go without the agent.
    fn remember(
        &mut self,
        slot: u32,
        source_generation: u32,
        destination: OrigDst,
        way: &Cacheable<'_>,
    ) -> io::Result<()>;

    /// Says that this worker lives: CLOCK_MONOTONIC now and how late its loop ran, in nanoseconds. `None`: no more
    /// connections, please.
    fn beat(&mut self, worker: u32, beat: Option<(u64, u64)>) -> io::Result<()>;
}
