//! The servers: all in one thread, every service on a port of its own.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{Backlog, listen},
    },
};

use crate::PageAligned;

/// Where to serve what.
#[derive(clap::Args)]
pub(crate) struct Ports {
    /// Port that sends back what it gets
    #[arg(long)]
    echo: Option<u16>,
    /// Port that reads to the end and answers with the byte count (8 bytes, little endian)
    #[arg(long)]
    sink: Option<u16>,
    /// Port that answers every HTTP/1.1 request with 128 bytes of text
    #[arg(long)]
    http: Option<u16>,
    /// Port that greets whoever connects, before being spoken to, in the manner of SMTP
    #[arg(long)]
    greeter: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Service {
    Echo,
    Sink,
    Http,
    Greeter,
}

struct Client {
    socket: TcpStream,
    service: Service,
    /// Received and not yet understood (HTTP, greeter).
    input: Vec<u8>,
    /// To be sent when the socket has room again.
    output: Vec<u8>,
    /// Bytes that went down the sink.
    swallowed: u64,
    /// Close when all is sent.
    closing: bool,
}

struct Server {
    epoll: Epoll,
    listeners: Vec<(TcpListener, Service)>,
    clients: Vec<Option<Client>>,
    vacant: Vec<usize>,
    buffer: Box<PageAligned<{ 1 << 20 }>>,
}

const OUT_OF_DESCRIPTORS: [i32; 2] = [Errno::EMFILE as i32, Errno::ENFILE as i32];

const BANNER: &[u8] = b"220 app ready\r\n";

/// Serves until killed.
///
/// # Errors
/// A port is taken, or the system refuses what the loop itself needs.
pub(crate) fn run(ports: &Ports) -> Result<()> {
    let wanted = [
        (ports.echo, Service::Echo),
        (ports.sink, Service::Sink),
        (ports.http, Service::Http),
        (ports.greeter, Service::Greeter),
    ];
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut listeners = Vec::new();
    for (port, service) in wanted {
        let Some(port) = port else { continue };
        let listener = bind(port).with_context(|| format!("port {port}"))?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, listeners.len() as u64))?;
        listeners.push((listener, service));
    }
    if listeners.is_empty() {
        bail!("nothing to serve: name at least one port");
    }
    let (clients, vacant) = (Vec::new(), Vec::new());
    Server { epoll, listeners, clients, vacant, buffer: PageAligned::boxed() }.run()
}

fn bind(port: u16) -> Result<TcpListener> {
    // Without IPv6 in the namespace, the wildcard of IPv4 has to do.
    let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        .or_else(|_| TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))))?;
    listener.set_nonblocking(true)?;
    // std listens with a backlog of 128, which a burst of connections overflows.
    listen(&listener, Backlog::new(4096)?)?;
    Ok(listener)
}

impl Server {
    fn run(&mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 128];
        loop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("epoll_wait"),
            };
            for event in events.iter().take(ready) {
                let token = event.data() as usize;
                match token.checked_sub(self.listeners.len()) {
                    None => self.accept(token)?,
                    Some(index) => self.on_client(index),
                }
            }
        }
    }

    fn accept(&mut self, listener: usize) -> Result<()> {
        let Some((listener, service)) = self.listeners.get(listener) else { return Ok(()) };
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            // The peer may be gone already. Without descriptors, though, a load that goes on would measure nothing.
            Err(error) if error.raw_os_error().is_some_and(|code| OUT_OF_DESCRIPTORS.contains(&code)) => {
                return Err(error).context("accept");
            }
            Err(_) => return Ok(()),
        };
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.clients.push(None);
            self.clients.len() - 1
        });
        let mut client =
            Client { socket, service: *service, input: Vec::new(), output: Vec::new(), swallowed: 0, closing: false };
        let token = (index + self.listeners.len()) as u64;
        let ready = client
            .socket
            .set_nonblocking(true)
            .and_then(|()| client.socket.set_nodelay(true))
            .and_then(|()| Ok(self.epoll.add(&client.socket, EpollEvent::new(EpollFlags::EPOLLIN, token))?))
            .and_then(|()| if client.service == Service::Greeter { client.send(BANNER) } else { Ok(()) });
        match (ready, self.clients.get_mut(index)) {
            (Ok(()), Some(place)) => *place = Some(client),
            _ => self.vacant.push(index),
        }
        Ok(())
    }

    fn on_client(&mut self, index: usize) {
        let token = (index + self.listeners.len()) as u64;
        let Some(place) = self.clients.get_mut(index) else { return };
        let Some(client) = place else { return };
        let was_blocked = !client.output.is_empty();
        let alive = if was_blocked { client.flush().is_ok() } else { client.receive(&mut self.buffer.0) };
        let blocked = !client.output.is_empty();
        if !alive || (client.closing && !blocked) {
            *place = None;
            self.vacant.push(index);
        } else if blocked != was_blocked {
            // A client that does not read is not read from either: it stalls itself.
            let interest = if blocked { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            if self.epoll.modify(&client.socket, &mut EpollEvent::new(interest, token)).is_err() {
                *place = None;
                self.vacant.push(index);
            }
        }
    }
}

impl Client {
    /// Reads once and answers. False when the connection is over.
    fn receive(&mut self, buffer: &mut [u8]) -> bool {
        let read = match self.socket.read(buffer) {
            Ok(0) => {
                if self.service == Service::Sink {
                    // The client may be gone; there is nobody to tell then.
                    return self.send(&self.swallowed.to_le_bytes()).is_ok() && !self.output.is_empty();
                }
                return false;
            }
            Ok(read) => read,
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        match self.service {
            Service::Sink => {
                self.swallowed += read as u64;
                true
            }
            Service::Echo => self.send(bytes).is_ok(),
            Service::Http => {
                self.input.extend_from_slice(bytes);
                self.answer_http().is_ok()
            }
            Service::Greeter => {
                self.input.extend_from_slice(bytes);
                self.answer_lines().is_ok()
            }
        }
    }

    fn answer_http(&mut self) -> std::io::Result<()> {
        const END: &[u8] = b"\r\n\r\n";
        while let Some(end) = self.input.windows(END.len()).position(|window| window == END) {
            let request: Vec<u8> = self.input.drain(..end + END.len()).collect();
            self.closing = request.to_ascii_lowercase().windows(17).any(|window| window == b"connection: close");
            let connection = if self.closing { "close" } else { "keep-alive" };
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 128\r\nConnection: {connection}\r\n\r\n{:x<128}",
                ""
            );
            self.send(answer.as_bytes())?;
        }
        Ok(())
    }

    fn answer_lines(&mut self) -> std::io::Result<()> {
        while let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            self.closing = line.starts_with(b"QUIT");
            self.send(if self.closing { b"221 bye\r\n" } else { b"250 ok\r\n" })?;
        }
        Ok(())
    }

    /// Sends now what fits, the rest when there is room.
    fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if !self.output.is_empty() {
            self.output.extend_from_slice(bytes);
            return Ok(());
        }
        let sent = write_some(&mut self.socket, bytes)?;
        self.output.extend_from_slice(bytes.get(sent..).unwrap_or_default());
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let sent = write_some(&mut self.socket, &self.output)?;
        self.output.drain(..sent);
        Ok(())
    }
}

fn write_some(socket: &mut TcpStream, bytes: &[u8]) -> std::io::Result<usize> {
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..)
        && !rest.is_empty()
    {
        match socket.write(rest) {
            Ok(written) => sent += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}
