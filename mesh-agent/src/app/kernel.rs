//! The kernel as the workers see it: the datapath's maps.

use std::{io, net::SocketAddr, time::Duration};

use nix::time::{ClockId, clock_gettime};
use tokio::net::TcpStream;

use crate::{
    datapath::{CachedBackend, CachedWay, WorkerMaps},
    model::{OrigDst, Reachable},
    proxy::{Kernel, Original, direct::Cacheable},
};

/// One worker's handles.
pub(super) struct KernelMaps(pub(super) WorkerMaps);

impl Kernel for KernelMaps {
    fn original(&self, downstream: &TcpStream) -> Option<Original> {
        let flow = self.0.original(downstream)?;
        Some(Original { destination: flow.destination, chosen: flow.chosen, held: flow.held })
    }

    fn set_reach(&mut self, slot: u32, destination: OrigDst, reachable: Reachable, valid: Duration) -> io::Result<()> {
        let until = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?) + valid;
        self.0.set_reach(slot, destination.0, reachable, until.as_nanos() as u64).map_err(io::Error::other)
    }

    fn show_client(&mut self, upstream: &socket2::Socket, client: SocketAddr) -> io::Result<()> {
        self.0.show_client(upstream, client).map_err(io::Error::other)
    }

    fn remember(
        &mut self,
        slot: u32,
        source_generation: u32,
        destination: OrigDst,
        way: &Cacheable<'_>,
    ) -> io::Result<()> {
        let backends: Vec<CachedBackend> = way
            .backends
            .iter()
            .map(|(endpoint, direct)| CachedBackend { endpoint: *endpoint, direct: *direct })
            .collect();
        let cached =
            if way.list == 0 { CachedWay::Pod } else { CachedWay::Service { list: way.list, backends: &backends } };
        self.0.remember(slot, source_generation, destination.0, way.generation, &cached).map_err(io::Error::other)
    }

    fn beat(&mut self, worker: u32, beat: Option<(u64, u64)>) -> io::Result<()> {
        self.0.beat(worker, beat).map_err(io::Error::other)
    }
}
