//! The kernel as the workers see it: the datapath's maps.

use std::{io, net::SocketAddr};

use tokio::net::TcpStream;

use crate::{
    datapath::{CachedBackend, CachedWay, WorkerMaps},
    model::OrigDst,
    proxy::{Kernel, direct::Cacheable},
};

/// One worker's handles.
pub(super) struct KernelMaps(pub(super) WorkerMaps);

impl Kernel for KernelMaps {
    fn original(&self, downstream: &TcpStream) -> Option<(OrigDst, Option<SocketAddr>)> {
        self.0.original(downstream).map(|flow| (flow.destination, flow.chosen))
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
