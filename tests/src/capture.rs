//! A packet socket: everything that crosses an interface, put together again.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use crate::{
    Node,
    packet::{Segment, Stream, Streams, contains},
    sys,
};

/// What the kernel keeps for us until we read it.
const BUFFER: i32 = 64 << 20;
/// Bytes of the largest packet: segmentation is left to hardware, which there is none of.
const PACKET: usize = 128 << 10;

/// Listens to an interface until it is dropped.
#[derive(Debug)]
pub struct Capture {
    seen: Arc<Mutex<Seen>>,
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Seen {
    socket: Socket,
    streams: Streams,
    /// Packets that are no TCP segments.
    others: Vec<Vec<u8>>,
    lost: u32,
}

impl Capture {
    /// From now on, in the node's namespace.
    ///
    /// # Panics
    /// When there is no such interface.
    pub fn start(node: &Node, interface: &str) -> Self {
        let socket = node.namespace.run(|| sys::packet_socket(interface)).expect("root may listen");
        sys::set_large_buffer(&socket, BUFFER).expect("root may have it");
        socket.set_nonblocking(true).expect("a socket");
        let reader = socket.try_clone().expect("descriptors");
        let seen = Seen { socket, streams: Streams::default(), others: Vec::new(), lost: 0 };
        let seen = Arc::new(Mutex::new(seen));
        let (stopped, stop) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("descriptors");
        let shared = Arc::clone(&seen);
        // So that the kernel's buffer never fills up, however long the test.
        let thread = std::thread::spawn(move || {
            loop {
                let mut events =
                    [PollFd::new(reader.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut events, PollTimeout::NONE);
                if events[1].revents().is_some_and(|events| !events.is_empty()) {
                    return;
                }
                lock(&shared).drain();
            }
        });
        Self { seen, stop: Some(stop), thread: Some(thread) }
    }

    /// All that has crossed until now. A packet is here before its receiver has it.
    ///
    /// # Panics
    /// When packets were lost: then nothing can be said about what crossed.
    fn now(&self) -> MutexGuard<'_, Seen> {
        let mut seen = lock(&self.seen);
        seen.drain();
        seen.lost += sys::lost_packets(&seen.socket).expect("a packet socket");
        assert_eq!(seen.lost, 0, "packets that nobody has looked at");
        seen
    }

    /// Asserts that `needle` crossed as it is, in one packet or in several.
    #[track_caller]
    pub fn assert_clear(&self, needle: &str) {
        assert!(self.now().find(needle).is_some(), "{needle:?} did not cross in clear: is this the right link?");
    }

    /// Asserts that nobody who listens to the link has seen `needle`.
    #[track_caller]
    pub fn assert_no_clear(&self, needle: &str) {
        if let Some(place) = self.now().find(needle) {
            panic!("{needle:?} crossed in clear, {place}");
        }
    }

    /// What was sent to this address and port, one entry for each connection.
    pub fn sent_to(&self, destination: SocketAddr) -> Vec<Stream> {
        let seen = self.now();
        seen.streams.all().iter().filter(|stream| stream.destination == destination).cloned().collect()
    }

    /// Every connection's every direction.
    pub fn streams(&self) -> Vec<Stream> {
        self.now().streams.all().to_vec()
    }
}

impl Seen {
    fn drain(&mut self) {
        let mut packet = vec![0; PACKET];
        loop {
            let length = match std::io::Read::read(&mut self.socket, &mut packet) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The interface went down or away, which is told once.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => continue,
                Err(error) => panic!("the packet socket: {error}"),
            };
            let packet = packet.get(..length).unwrap_or_default();
            match Segment::parse(packet) {
                Some(segment) => self.streams.add(&segment),
                None => self.others.push(packet.to_vec()),
            }
        }
    }

    /// Where it was first seen.
    fn find(&self, needle: &str) -> Option<String> {
        let needle = needle.as_bytes();
        let stream = self.streams.all().iter().find(|stream| contains(&stream.data, needle));
        let found = stream.map(|stream| format!("from {} to {}", stream.source, stream.destination));
        found.or_else(|| {
            self.others.iter().any(|packet| contains(packet, needle)).then(|| "in another protocol than TCP".to_owned())
        })
    }
}

/// A test that failed while it held the lock is to be told of, not this.
fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
