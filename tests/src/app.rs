//! Apps: listeners with a behaviour, in a pod or wherever the listener was made.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    thread::JoinHandle,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{node::Pod, socket, wait::PATIENCE};

/// A connection, as the app saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What accept() said.
    pub accepted: SocketAddr,
    /// What getpeername() said.
    pub peer: SocketAddr,
    /// What getsockname() said.
    pub local: SocketAddr,
}

/// A running app. It stops listening on drop; its connections go on until they end.
#[derive(Debug)]
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Receiver<Seen>,
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl App {
    /// Serves every connection of the listener on a thread of its own.
    pub fn new(listener: TcpListener, serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().expect("it is bound");
        listener.set_nonblocking(true).expect("a socket");
        let (tell, seen) = mpsc::channel();
        let (stopped, stop) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("descriptors");
        let serve = Arc::new(serve);
        let thread = std::thread::spawn(move || {
            loop {
                let mut events =
                    [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut events, PollTimeout::NONE);
                if events[1].revents().is_some_and(|events| !events.is_empty()) {
                    return;
                }
                let Ok((stream, accepted)) = listener.accept() else { continue };
                let accepted = socket::canonical(accepted);
                // A connection that is gone already was never the app's.
                let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { continue };
                let (peer, local) = (socket::canonical(peer), socket::canonical(local));
                let _ = tell.send(Seen { accepted, peer, local });
                stream.set_nonblocking(false).expect("a socket");
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { address, seen, stop: Some(stop), thread: Some(thread) }
    }

    /// Echoes until the client has ended.
    pub fn echo(pod: &Pod, port: u16) -> Self {
        Self::new(pod.listen(port), echo)
    }

    /// Speaks first, then echoes.
    pub fn banner(pod: &Pod, port: u16, text: &'static str) -> Self {
        Self::new(pod.listen(port), move |mut stream| {
            stream.write_all(text.as_bytes())?;
            echo(stream)
        })
    }

    /// Says its name and hangs up.
    pub fn named(pod: &Pod, port: u16, name: &'static str) -> Self {
        Self::new(pod.listen(port), move |mut stream| {
            stream.write_all(name.as_bytes())?;
            Ok(())
        })
    }

    /// The next connection.
    ///
    /// # Panics
    /// When none comes in time.
    pub fn seen(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).expect("a connection reaches the app")
    }

    /// The next connection, if there was another.
    pub fn try_seen(&self) -> Option<Seen> {
        self.seen.try_recv().ok()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Echoes until the client has ended.
///
/// # Errors
/// The client resets.
pub fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        stream.write_all(buffer.get(..read).unwrap_or_default())?;
    }
}
