//! Connections that have been used once and do nothing: what does the path keep for each?

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Result, bail};
use serde::Serialize;

use crate::{
    dialogue::{Dialogue, Kind, Step},
    print_line,
};

/// A connection that answers later than this is lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// Printed when all are open, and once more when standard input has closed and each was used again.
#[derive(Serialize)]
struct Held {
    /// Connections that answered.
    done: usize,
    /// Those that did not.
    errors: usize,
    /// Why the first of them did not.
    first_error: Option<String>,
}

/// Opens them, holds them until standard input closes, uses them again.
///
/// # Errors
/// Standard output or input is broken.
pub(crate) fn run(address: SocketAddr, connections: usize) -> Result<()> {
    let mut held = Vec::with_capacity(connections);
    let mut first_error = None;
    for _ in 0..connections {
        match TcpStream::connect(address).map_err(anyhow::Error::from).and_then(|mut socket| {
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            request(&mut socket)?;
            Ok(socket)
        }) {
            Ok(socket) => held.push(socket),
            Err(error) => {
                first_error.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }
    print_line(&Held { done: held.len(), errors: connections - held.len(), first_error: first_error.take() })?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    let mut done = 0;
    for socket in &mut held {
        match request(socket) {
            Ok(()) => done += 1,
            Err(error) => {
                first_error.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }
    print_line(&Held { done, errors: held.len() - done, first_error })
}

fn request(socket: &mut TcpStream) -> Result<()> {
    let mut dialogue = Dialogue::new(Kind::HttpKeep);
    socket.write_all(Kind::HttpKeep.opening().unwrap_or_default())?;
    let mut buffer = [0; 4096];
    loop {
        let read = socket.read(&mut buffer)?;
        if read == 0 {
            bail!("closed before the answer was complete");
        }
        match dialogue.hear(buffer.get(..read).unwrap_or_default()) {
            Step::Done => return Ok(()),
            Step::Wrong(why) => bail!(why),
            Step::More | Step::Say(_) => {}
        }
    }
}
