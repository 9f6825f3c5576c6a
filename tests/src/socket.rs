//! Clients.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::{node::Pod, wait::PATIENCE};

/// Connects from the pod; reads and writes time out.
///
/// # Errors
/// What connect() says.
pub fn connect(pod: &Pod, to: SocketAddr) -> io::Result<TcpStream> {
    pod.run(|| connect_here(to))
}

/// Connects from where this thread is.
///
/// # Errors
/// What connect() says.
pub fn connect_here(to: SocketAddr) -> io::Result<TcpStream> {
    patient(TcpStream::connect_timeout(&to, PATIENCE)?)
}

/// Whether a connection that is let in and then reset met that: by connect() itself, if the reset is there before the
/// thread that connects has woken up, or else by what it reads.
pub fn met_reset(connected: io::Result<TcpStream>) -> bool {
    connected
        .and_then(|mut stream| stream.read(&mut [0; 1]))
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

/// A stream whose reads and writes give up some day.
///
/// # Errors
/// The socket is none.
pub fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // Fails on a socket that was reset meanwhile, which is for the test to notice by reading.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// A socket of the pod, not connected yet, for TCP over the family of `like`.
pub fn new(pod: &Pod, like: SocketAddr) -> Socket {
    pod.run(|| Socket::new(Domain::for_address(like), Type::STREAM, None)).expect("a socket")
}

/// Sends and reads the same back.
///
/// # Errors
/// What the socket says; `InvalidData` if something else comes back.
pub fn exchange(mut stream: impl Read + Write, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes())?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back)?;
    if back == text.as_bytes() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "not an echo")) }
}

/// Connects, exchanges a few bytes and ends as a polite client does: waits for the server's end.
///
/// # Errors
/// What the socket says.
pub fn round_trip(pod: &Pod, to: SocketAddr) -> io::Result<()> {
    let stream = connect(pod, to)?;
    exchange(&stream, "hello")?;
    finish(stream)
}

/// Half-closes and reads to the end.
///
/// # Errors
/// What the socket says; `InvalidData` if more comes.
pub fn finish(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    if rest.is_empty() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "more than was asked for")) }
}

/// Connects and reads to the end.
///
/// # Errors
/// What the socket says.
pub fn read_all(pod: &Pod, to: SocketAddr) -> io::Result<String> {
    let mut text = String::new();
    connect(pod, to)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Closes with RST.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
    drop(stream);
}

/// Without v4-mapping.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
