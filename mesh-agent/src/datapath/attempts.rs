//! Connections whose handshake is held: the ring that sock_ops writes them to.

use std::{io, net::SocketAddr};

use aya::maps::{Map, MapData, RingBuf};
use tokio::io::unix::AsyncFd;

use super::{
    Error, Pins,
    maps::{known, socket_address},
};
use crate::{model::OrigDst, sys};

/// A connection that waits for the agent to find out whether its destination answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The workload's slot.
    pub slot: u32,
    /// The CPU it was made on.
    pub cpu: u32,
    /// The app's end, as the agent will see it as its downstream.
    pub downstream: SocketAddr,
    /// What the app asked for.
    pub destination: OrigDst,
    /// The backend that the connect hook drew, if any.
    pub chosen: Option<SocketAddr>,
}

/// The reading end.
pub struct Attempts(AsyncFd<RingBuf<MapData>>);

impl Attempts {
    /// Needs a tokio runtime.
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        let path = pins.map("ATTEMPTS");
        let ring = RingBuf::try_from(Map::from_map_data(MapData::from_pin(&path)?)?)?;
        Ok(Self(sys::async_fd(ring).map_err(|source| Error::Pin { path, source })?))
    }

    /// The next ones.
    pub async fn next(&mut self) -> io::Result<Vec<Attempt>> {
        loop {
            let mut guard = self.0.readable_mut().await?;
            let ring = guard.get_inner_mut();
            let mut attempts = Vec::new();
            while let Some(item) = ring.next() {
                if let Some(attempt) = mesh_common::Attempt::from_bytes(&item) {
                    attempts.push(read(&attempt));
                }
            }
            guard.clear_ready();
            if !attempts.is_empty() {
                return Ok(attempts);
            }
        }
    }
}

fn read(attempt: &mesh_common::Attempt) -> Attempt {
    let source = crate::model::address::from_words(attempt.tuple.source);
    Attempt {
        slot: attempt.slot,
        cpu: attempt.cpu,
        downstream: SocketAddr::new(source, attempt.tuple.source_port),
        destination: OrigDst(socket_address(&attempt.original)),
        chosen: known(&attempt.chosen),
    }
}
