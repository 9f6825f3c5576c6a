//! Listeners of the agent in a pod's namespace.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    time::Duration,
};

use socket2::{Domain, SockAddr, SockFilter, Socket, TcpKeepalive, Type};

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Listens for IPv4 and IPv6 in the namespace that this thread is in.
///
/// Connections are steered here by `sk_lookup`, whatever their port: `port` is only what `ss` shows, and another one
/// is taken when an app of the pod already has it. Accepted sockets inherit TCP_NODELAY and keepalive.
pub fn listen(port: u16, keepalive: Duration) -> io::Result<TcpListener> {
    let socket = match dual_stack() {
        Ok(socket) => socket,
        // A kernel booted with ipv6.disable=1.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            prepare(&socket, keepalive)?;
            bind(&socket, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
            return start(socket);
        }
        Err(error) => return Err(error),
    };
    prepare(&socket, keepalive)?;
    bind(&socket, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    start(socket)
}

/// A listener that neither answers nor refuses: its filter drops every packet before TCP sees it.
pub fn limbo() -> io::Result<TcpListener> {
    let socket = match dual_stack() {
        Ok(socket) => socket,
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            Socket::new(Domain::IPV4, Type::STREAM, None)?
        }
        Err(error) => return Err(error),
    };
    // BPF_RET | BPF_K with 0: keep no byte of the packet (bpf(4), Documentation/networking/filter.rst).
    socket.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)])?;
    socket.listen(1)?;
    Ok(socket.into())
}

fn dual_stack() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    Ok(socket)
}

fn prepare(socket: &Socket, keepalive: Duration) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive).with_interval(keepalive / 6).with_retries(6))
}

fn bind(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match socket.bind(&SockAddr::from(address)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            socket.bind(&SockAddr::from(SocketAddr::new(address.ip(), 0)))
        }
        result => result,
    }
}

fn start(socket: Socket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
