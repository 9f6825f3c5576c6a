//! The modes without a protocol: one connection, blocking.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    PageAligned, Window,
    report::{Report, Tally},
};

const DEFAULT_SECONDS: Duration = Duration::from_secs(3);

/// The result of an upload.
#[derive(Serialize)]
pub(crate) struct Upload {
    /// From the first byte to the acknowledgement.
    secs: f64,
    /// Bytes written.
    bytes: u64,
    /// Bytes that the sink says it read.
    acked: u64,
    gbit_s: f64,
    /// As `acked`: what CPU time is divided by.
    total: u64,
    /// 1 if the two differ.
    errors: u64,
}

/// Sends `size` bytes and awaits them back, over and over.
///
/// # Errors
/// The connection fails: one lost byte makes every later figure meaningless.
pub(crate) fn ping_pong(address: SocketAddr, size: usize, window: Window) -> Result<Report> {
    let mut socket = connect(address)?;
    let mut message = vec![b'x'; size.max(1)];
    let mut tally = Tally::new();
    let measured_from = Instant::now() + window.warm;
    let seconds = window.seconds.unwrap_or(DEFAULT_SECONDS);
    let until = measured_from + seconds;
    let mut sent = Instant::now();
    while sent <= until {
        socket.write_all(&message).context("send")?;
        socket.read_exact(&mut message).context("receive")?;
        let back = Instant::now();
        tally.answered((sent >= measured_from).then(|| back.duration_since(sent)));
        sent = back;
    }
    Ok(tally.report(seconds.as_secs_f64()))
}

/// Sends as fast as it goes. There is no warm-up: a stream is long enough to be its own.
///
/// # Errors
/// The connection fails.
pub(crate) fn upload(address: SocketAddr, window: Window) -> Result<Upload> {
    let mut socket = connect(address)?;
    let chunk = PageAligned::<{ 128 * 1024 }>::boxed();
    let start = Instant::now();
    let until = start + window.seconds.unwrap_or(DEFAULT_SECONDS);
    let mut bytes = 0;
    while Instant::now() < until {
        bytes += socket.write(&chunk.0).context("send")? as u64;
    }
    socket.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    socket.read_exact(&mut count).context("the sink's acknowledgement")?;
    let secs = start.elapsed().as_secs_f64();
    let acked = u64::from_le_bytes(count);
    let gbit_s = acked as f64 * 8.0 / secs / 1e9;
    Ok(Upload { secs, bytes, acked, gbit_s, total: acked, errors: u64::from(acked != bytes) })
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    socket.set_nodelay(true)?;
    Ok(socket)
}
