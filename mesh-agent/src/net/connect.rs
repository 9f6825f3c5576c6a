//! Upstream connections, made in a pod's namespace.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

use super::netns::Netns;

/// How an upstream socket is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a connect may take.
    pub timeout: Duration,
    /// Idle time before keepalive probes.
    pub keepalive: Duration,
}

/// A socket that is on its way to its peer.
#[derive(Debug)]
pub struct Connecting(TcpStream);

/// A socket in the pod's namespace, not connected yet, as for the agent's own purposes: no delay, keepalive.
pub fn socket(netns: &Netns, address: IpAddr, options: &Options) -> io::Result<Socket> {
    netns.enter()?;
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(options.keepalive).with_interval(options.keepalive / 6).with_retries(6);
    socket.set_tcp_keepalive(&keepalive)?;
    Ok(socket)
}

/// Binds to a loopback address drawn by `random`, without taking a port yet: a connection to an app of the pod then has
/// 256 x all ports to choose from, and its TIME_WAIT ends early.
pub fn bind_loopback(socket: &Socket, random: u32) -> io::Result<()> {
    let [_, _, low, lowest] = random.to_be_bytes();
    // 127.0.x.y, but neither 127.0.0.0 nor an address that the connect hook uses (from 127.1.0.0 on).
    let address = Ipv4Addr::new(127, 0, low, lowest.max(2));
    setsockopt(socket, IpBindAddressNoPort, &true)?;
    socket.bind(&SockAddr::from(SocketAddr::from((address, 0))))
}

/// Starts to connect.
pub fn start(socket: Socket, to: SocketAddr) -> io::Result<Connecting> {
    match socket.connect(&SockAddr::from(to)) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Ok(Connecting(TcpStream::from_std(socket.into())?))
}

impl Connecting {
    /// Waits until the peer has answered, at most `timeout`.
    pub async fn established(self, timeout: Duration) -> io::Result<TcpStream> {
        tokio::time::timeout(timeout, self.0.writable())
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        match self.0.take_error()? {
            Some(error) => Err(error),
            None => Ok(self.0),
        }
    }
}

/// Makes the socket answer with RST when it is closed.
pub fn reset_on_close(stream: &TcpStream) {
    // It can only fail on a socket that is gone already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
