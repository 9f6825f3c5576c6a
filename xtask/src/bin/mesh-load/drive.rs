//! The event loop of the clients with several connections. Closed loop: each connection asks again as soon as it is
//! answered. Fixed rate: requests are due at regular times and their latency counts from then, so that a stall shows in
//! every request it delayed.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        prctl,
        socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket},
        time::TimeSpec,
    },
};

use crate::{
    Window,
    dialogue::{Dialogue, Kind, Step},
    report::{Report, Tally},
};

const STDIN: u64 = u64::MAX;
const MAX_WAIT: Duration = Duration::from_millis(100);
/// A path that fails this often is broken: no need to burn CPU on it until the time is up.
const MAX_ERRORS: u64 = 100_000;

/// What to do.
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    pub(crate) kind: Kind,
    pub(crate) connections: usize,
    /// Requests a second.
    pub(crate) rate: Option<f64>,
    pub(crate) window: Window,
}

struct Slot {
    socket: Option<TcpStream>,
    connecting: bool,
    /// A request is on its way.
    busy: bool,
    dialogue: Dialogue,
    due: Instant,
}

struct Drive<'a> {
    plan: &'a Plan,
    epoll: Epoll,
    slots: Vec<Slot>,
    /// Slots without a request: those that wait until one is due and, in a closed loop, those whose last one failed.
    idle: Vec<usize>,
    buffer: Vec<u8>,
    tally: Tally,
    measured_from: Instant,
}

/// Runs it.
///
/// # Errors
/// The system refuses what the loop itself needs. Failed requests are counted, not returned.
pub(crate) fn run(plan: &Plan) -> Result<Report> {
    if plan.connections == 0 || plan.rate.is_some_and(|rate| rate <= 0.0) {
        bail!("--connections and --rate must be above zero");
    }
    // The default lets the kernel wake us 50 us late, more than a request takes.
    prctl::set_timerslack(1000).context("timer slack")?;
    let start = Instant::now();
    let measured_from = start + plan.window.warm;
    let until = plan.window.seconds.map(|seconds| measured_from + seconds);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    if until.is_none() {
        epoll
            .add(io::stdin(), EpollEvent::new(EpollFlags::EPOLLIN, STDIN))
            .context("without --seconds, standard input must be a pipe or a terminal")?;
    }
    let slots = (0..plan.connections)
        .map(|_| Slot { socket: None, connecting: false, busy: false, dialogue: Dialogue::new(plan.kind), due: start })
        .collect();
    let mut drive = Drive {
        plan,
        epoll,
        slots,
        idle: Vec::with_capacity(plan.connections),
        buffer: vec![0; 65_536],
        tally: Tally::new(),
        measured_from,
    };
    drive.run(start, until)?;
    let measured = until.unwrap_or_else(Instant::now).saturating_duration_since(measured_from);
    Ok(drive.tally.report(measured.as_secs_f64().max(1e-9)))
}

impl Drive<'_> {
    fn run(&mut self, start: Instant, until: Option<Instant>) -> Result<()> {
        let mut pace = self.plan.rate.map(|rate| Pace { next: start, interval: Duration::from_secs_f64(1.0 / rate) });
        self.idle.extend(0..self.slots.len());
        let mut events = [EpollEvent::empty(); 128];
        loop {
            let now = Instant::now();
            if until.is_some_and(|until| now > until) || self.tally.errors() > MAX_ERRORS {
                return Ok(());
            }
            let ready = match &mut pace {
                None => {
                    for index in std::mem::take(&mut self.idle) {
                        self.ask(index, now);
                    }
                    let wait = if self.idle.is_empty() { MAX_WAIT } else { Duration::ZERO };
                    self.epoll.wait(&mut events, EpollTimeout::try_from(wait)?)
                }
                Some(pace) => {
                    while pace.next <= now
                        && let Some(index) = self.idle.pop()
                    {
                        self.ask(index, pace.next);
                        pace.next += pace.interval;
                    }
                    let wait = if self.idle.is_empty() { MAX_WAIT } else { pace.next.saturating_duration_since(now) };
                    self.wait_precisely(&mut events, wait.min(MAX_WAIT))
                }
            };
            let ready = match ready {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("epoll_wait"),
            };
            for event in events.iter().take(ready) {
                if event.data() == STDIN {
                    return Ok(());
                }
                self.on_event(event.data() as usize);
            }
        }
    }

    /// `epoll_wait` counts in milliseconds, a fixed rate needs microseconds.
    fn wait_precisely(&self, events: &mut [EpollEvent], wait: Duration) -> nix::Result<usize> {
        let mut fds = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(wait)), None)? {
            0 => Ok(0),
            _ => self.epoll.wait(events, EpollTimeout::ZERO),
        }
    }

    fn ask(&mut self, index: usize, due: Instant) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.due = due;
        slot.busy = true;
        slot.dialogue.restart();
        let begun = match (&mut slot.socket, self.plan.kind.opening()) {
            (Some(socket), Some(opening)) => say(socket, opening),
            _ => open(&self.epoll, self.plan.address, index as u64).map(|socket| {
                slot.connecting = true;
                slot.socket = Some(socket);
            }),
        };
        if let Err(error) = begun {
            self.fail(index, || format!("cannot send: {error}"));
        }
    }

    fn on_event(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(socket) = &mut slot.socket else { return };
        if slot.connecting {
            slot.connecting = false;
            let connected = match socket.take_error() {
                Ok(None) => arm_reading(&self.epoll, socket, index as u64)
                    .and_then(|()| self.plan.kind.opening().map_or(Ok(()), |opening| say(socket, opening))),
                Ok(Some(error)) | Err(error) => Err(error),
            };
            if let Err(error) = connected {
                self.fail(index, || format!("cannot connect: {error}"));
            }
            return;
        }
        let heard = match socket.read(&mut self.buffer) {
            Ok(0) if slot.dialogue.may_end() => Ok(Step::Done),
            Ok(0) => Err("closed before the answer was complete".to_owned()),
            Ok(_) if !slot.busy => Err("bytes nobody asked for".to_owned()),
            Ok(read) => Ok(slot.dialogue.hear(self.buffer.get(..read).unwrap_or_default())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => Err(format!("cannot read: {error}")),
        };
        match heard {
            Ok(Step::More) => {}
            Ok(Step::Say(words)) => {
                if let Err(error) = say(socket, words) {
                    self.fail(index, || format!("cannot send: {error}"));
                }
            }
            Ok(Step::Done) => self.done(index),
            Ok(Step::Wrong(why)) => self.fail(index, || why.to_owned()),
            Err(why) => self.fail(index, || why),
        }
    }

    fn done(&mut self, index: usize) {
        let now = Instant::now();
        let Some(slot) = self.slots.get_mut(index) else { return };
        let counts = slot.due >= self.measured_from;
        self.tally.answered(counts.then(|| now.duration_since(slot.due)));
        if self.plan.kind.ends_with_close() {
            slot.socket = None;
        }
        if self.plan.rate.is_some() {
            slot.busy = false;
            self.idle.push(index);
        } else {
            self.ask(index, now);
        }
    }

    fn fail(&mut self, index: usize, why: impl FnOnce() -> String) {
        self.tally.failed(why);
        if let Some(slot) = self.slots.get_mut(index) {
            slot.socket = None;
            // If it was idle when the server closed it, it is in the list already.
            let was_busy = slot.busy;
            slot.busy = false;
            if was_busy {
                self.idle.push(index);
            }
        }
    }
}

struct Pace {
    next: Instant,
    interval: Duration,
}

/// A non-blocking socket on its way to `address`, watched for being connected.
fn open(epoll: &Epoll, address: SocketAddr, token: u64) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = TcpStream::from(socket(family, SockType::Stream, flags, None)?);
    stream.set_nodelay(true)?;
    match connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLOUT, token))?;
    Ok(stream)
}

fn arm_reading(epoll: &Epoll, socket: &TcpStream, token: u64) -> io::Result<()> {
    Ok(epoll.modify(socket, &mut EpollEvent::new(EpollFlags::EPOLLIN, token))?)
}

/// All of these are far smaller than an empty send buffer, so a short write is a failure.
fn say(socket: &mut TcpStream, words: &[u8]) -> io::Result<()> {
    if socket.write(words)? == words.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}
