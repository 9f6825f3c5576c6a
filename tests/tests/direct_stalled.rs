//! Apps that do not read what is sent to them stop nobody else on the same connection between two agents. No privileges
//! needed.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Condvar, LazyLock, Mutex},
};

use mesh_tests::{Twin, app, eventually, socket};

/// Readers that stall: twice as many as the window of a connection has room for.
const STALLED: usize = 8;
/// The window of a stream, which a reader that stalls leaves full.
const WINDOW: u64 = 4 << 20;
/// What each of them is sent where the sender decides.
const FLOOD: u64 = 16 << 20;

/// What is sent begins somewhere in here, and again when it has come to the end.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let random = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..1_000_003).map(random).collect()
});

/// What comes at `position` of a stream, up to `most` bytes of it.
fn bytes_at(seed: u8, position: u64, most: usize) -> &'static [u8] {
    let from = (u64::from(seed) * 7919 + position) as usize % PATTERN.len();
    &PATTERN[from..PATTERN.len().min(from + most)]
}

/// Reads to the end; how many bytes there were. Each has to be what it was.
fn read_to_end(mut stream: impl Read, seed: u8) -> std::io::Result<u64> {
    let (mut position, mut buffer) = (0, vec![0; 256 * 1024]);
    loop {
        let read = stream.read(&mut buffer)?;
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            let expected = bytes_at(seed, position, rest.len());
            assert!(rest.starts_with(expected), "other bytes after {position}");
            position += expected.len() as u64;
            rest = &rest[expected.len()..];
        }
        if read == 0 {
            return Ok(position);
        }
    }
}

/// Closed until it is opened, for all that wait.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    fn pass(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |is_open| !*is_open).unwrap());
    }
}

/// One that is sent as much as goes.
struct Flooded {
    stream: TcpStream,
    seed: u8,
    sent: u64,
}

impl Flooded {
    fn new(stream: TcpStream, seed: u8) -> Self {
        (&stream).write_all(&[seed]).unwrap();
        stream.set_nonblocking(true).unwrap();
        Self { stream, seed, sent: 0 }
    }

    /// Sends what goes; whether that was anything.
    fn flood(&mut self) -> bool {
        match (&self.stream).write(bytes_at(self.seed, self.sent, 128 * 1024)) {
            Ok(written) => {
                self.sent += written as u64;
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        }
    }
}

fn seed_of(mut stream: impl Read) -> std::io::Result<u8> {
    let mut seed = [0];
    stream.read_exact(&mut seed)?;
    Ok(seed[0])
}

/// Little and much, both ways.
fn goes_on(neighbour: &TcpStream) {
    let much = "0123456789abcdef".repeat(16 * 1024);
    for _ in 0..3 {
        socket::exchange(neighbour, "not disturbed").expect("a neighbour of stalled readers is served");
        socket::exchange(neighbour, &much).expect("a neighbour of stalled readers is served");
    }
}

#[test]
fn servers_that_do_not_read_stop_nobody_else() {
    let twin = Twin::default();
    let gate = Arc::new(Gate::default());
    let closed = Arc::clone(&gate);
    let stuck = twin.app(move |mut stream| {
        closed.pass();
        let seed = seed_of(&stream)?;
        stream.write_all(read_to_end(&stream, seed)?.to_string().as_bytes())
    });
    let echo = twin.app(app::echo);
    let neighbour = twin.client.connect(echo.address);
    socket::exchange(&neighbour, "before").unwrap();
    let mut stalled: Vec<_> = (0..STALLED as u8)
        .map(|seed| {
            let stream = twin.client.connect(stuck.address);
            stuck.seen();
            Flooded::new(stream, seed)
        })
        .collect();
    eventually("each has its window full", || {
        let went = stalled.iter_mut().map(Flooded::flood).fold(false, |any, went| any | went);
        (!went && stalled.iter().all(|one| one.sent >= WINDOW)).then_some(())
    });
    goes_on(&neighbour);
    // And as much as goes after that.
    let mut quiet = 0;
    while quiet < 20 {
        let went = stalled.iter_mut().map(Flooded::flood).fold(false, |any, went| any | went);
        quiet = if went { 0 } else { quiet + 1 };
        socket::exchange(&neighbour, "not disturbed").unwrap();
    }
    let most = stalled.iter().map(|one| one.sent).max().unwrap();
    assert!(most < 64 << 20, "the sender was stalled, not buffered for: {most}");
    goes_on(&neighbour);
    assert_eq!(twin.server.pod.counters[0].inbound.tunnels.value(), 1, "all on one connection");

    gate.open();
    for one in stalled {
        one.stream.set_nonblocking(false).unwrap();
        one.stream.shutdown(Shutdown::Write).unwrap();
        let mut said = String::new();
        (&one.stream).read_to_string(&mut said).unwrap();
        assert_eq!(said, one.sent.to_string(), "every byte, in order");
    }
    goes_on(&neighbour);
}

#[test]
fn clients_that_do_not_read_stop_nobody_else() {
    let twin = Twin::default();
    let flood = twin.app(|mut stream| {
        let (seed, mut sent) = (seed_of(&stream)?, 0);
        while sent < FLOOD {
            let bytes = bytes_at(seed, sent, (FLOOD - sent) as usize);
            stream.write_all(bytes)?;
            sent += bytes.len() as u64;
        }
        Ok(())
    });
    let echo = twin.app(app::echo);
    let neighbour = twin.client.connect(echo.address);
    socket::exchange(&neighbour, "before").unwrap();
    let stalled: Vec<_> = (0..STALLED as u8)
        .map(|seed| {
            let stream = twin.client.connect(flood.address);
            flood.seen();
            (&stream).write_all(&[seed]).unwrap();
            stream
        })
        .collect();
    let came = || twin.server.pod.counters[0].inbound.to_downstream.value();
    eventually("each has its window full", || (came() >= STALLED as u64 * WINDOW).then_some(()));
    goes_on(&neighbour);
    let mut before = 0;
    eventually("no more goes", || {
        goes_on(&neighbour);
        let now = came();
        // What the neighbour got is among it.
        let is_still = now - before < 2 << 20;
        before = now;
        is_still.then_some(())
    });
    assert_eq!(twin.server.pod.counters[0].inbound.tunnels.value(), 1, "all on one connection");

    for (seed, stream) in (0..).zip(stalled) {
        assert_eq!(read_to_end(stream, seed).unwrap(), FLOOD, "every byte, in order");
    }
    goes_on(&neighbour);
}
