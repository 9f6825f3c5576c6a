//! Upstream connections, made in a pod's namespace.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::{io::Interest, net::TcpStream};

use super::netns::Netns;

/// A socket that is on its way to its peer.
#[derive(Debug)]
pub struct Connecting(TcpStream);

/// A socket in the pod's namespace, not connected yet. Its options (no delay, keepalive) are set by the connect hook.
pub fn socket(netns: &Netns, address: IpAddr) -> io::Result<Socket> {
    netns.enter()?;
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::STREAM.nonblocking(), None)
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
        let ready = tokio::time::timeout(timeout, self.0.ready(Interest::WRITABLE))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        // Only a socket that has failed is closed for writing: no need to ask the others for their error.
        if ready.is_write_closed()
            && let Some(error) = self.0.take_error()?
        {
            return Err(error);
        }
        Ok(self.0)
    }
}

/// Makes the socket answer with RST when it is closed.
pub fn reset_on_close(stream: &TcpStream) {
    // It can only fail on a socket that is gone already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
