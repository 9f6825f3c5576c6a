//! What a connection may send us that nobody has read yet. HTTP/2 gives the window of a connection back together with that
//! of a stream, so apps that do not read hold on to it, and in the end their neighbours would starve. Hence for each
//! reader that stalls the connection's window is raised by that of a stream, out of a reserve that all connections share.

#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Interval, MissedTickBehavior},
};

use super::Streams;

// Flow control, as others set it: a stream carries 10 Gbit/s over 3 ms.
pub(super) const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
pub(super) const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// How often readers that stall are counted, while there are any.
const PERIOD: Duration = Duration::from_millis(100);

/// What all connections of the agent may be lent together.
static RESERVE: Reserve = Reserve::new(128 * 1024 * 1024);

/// Window to lend.
#[derive(Debug)]
struct Reserve(AtomicU32);

impl Reserve {
    const fn new(bytes: u32) -> Self {
        Self(AtomicU32::new(bytes))
    }

    /// Lends to who `has` so much already.
    fn lend(&self, has: u32, wants: u32) -> u32 {
        let mut lent = 0;
        let _ = self.0.fetch_update(Relaxed, Relaxed, |free| {
            lent = share(free, has, wants);
            free.checked_sub(lent)
        });
        lent
    }

    fn take_back(&self, bytes: u32) {
        self.0.fetch_add(bytes, Relaxed);
    }
}

/// Nobody gets more than what is left for all others then: the first one half of the reserve, and there is always some.
fn share(free: u32, has: u32, wants: u32) -> u32 {
    wants.min(free.saturating_sub(has) / 2)
}

/// What a connection has of the reserve.
#[derive(Debug, Default)]
struct Loan {
    lent: u32,
    /// What of that the window is lowered by. The other end has been told of it, and may use it until as many bytes have
    /// been given back to the connection, whose window does not grow by them.
    owed: u32,
}

impl Loan {
    /// Lends and claims back, as so many readers stall.
    fn follow(&mut self, stalled: usize, reserve: &Reserve) {
        let wanted = held_by(stalled);
        let in_force = self.lent - self.owed;
        if wanted < in_force {
            self.owed += in_force - wanted;
            return;
        }
        let again = self.owed.min(wanted - in_force);
        self.owed -= again;
        self.lent += reserve.lend(self.lent, wanted - in_force - again);
    }

    /// Bytes were given back to the connection.
    fn repay(&mut self, bytes: usize, reserve: &Reserve) {
        let paid = u32::try_from(bytes).map_or(self.owed, |bytes| bytes.min(self.owed));
        self.owed -= paid;
        self.lent -= paid;
        reserve.take_back(paid);
    }

    /// The window that the connection has by it.
    fn window(&self) -> u32 {
        CONNECTION_WINDOW + self.lent - self.owed
    }

    /// Whether those that stall leave less than a stream's window to all others.
    fn is_short(&self, stalled: usize) -> bool {
        self.window().saturating_sub(held_by(stalled)) < STREAM_WINDOW
    }
}

/// The most that stalled readers hold.
fn held_by(stalled: usize) -> u32 {
    u32::try_from(stalled).map_or(u32::MAX, |stalled| stalled.saturating_mul(STREAM_WINDOW))
}

/// The readers of a connection, and what it was lent for them.
#[derive(Debug)]
pub(super) struct Readers {
    reserve: &'static Reserve,
    stalled: AtomicUsize,
    /// Somebody counts them: nobody needs to be woken for the next one.
    is_watched: AtomicBool,
    stall: Notify,
    owes: AtomicBool,
    is_short: AtomicBool,
    loan: Mutex<Loan>,
}

impl Default for Readers {
    fn default() -> Self {
        Self::of(&RESERVE)
    }
}

impl Readers {
    fn of(reserve: &'static Reserve) -> Self {
        Self {
            reserve,
            stalled: AtomicUsize::default(),
            is_watched: AtomicBool::default(),
            stall: Notify::default(),
            owes: AtomicBool::default(),
            is_short: AtomicBool::default(),
            loan: Mutex::default(),
        }
    }

    /// One of them stalls.
    pub(super) fn stall(&self) {
        self.stalled.fetch_add(1, SeqCst);
        if !self.is_watched.swap(true, SeqCst) {
            self.stall.notify_one();
        }
    }

    /// It has read, or is gone.
    pub(super) fn go_on(&self) {
        self.stalled.fetch_sub(1, SeqCst);
    }

    /// Bytes of a stream were given back.
    pub(super) fn released(&self, bytes: usize) {
        if self.owes.load(Relaxed) {
            let mut loan = self.loan();
            loan.repay(bytes, self.reserve);
            self.owes.store(loan.owed > 0, Relaxed);
        }
    }

    /// Whether they hold the whole window, and it cannot be raised.
    pub(super) fn are_short(&self) -> bool {
        self.is_short.load(Relaxed)
    }

    /// Follows their number; the window, if it is another one now.
    fn follow(&self, stalled: usize) -> Option<u32> {
        let mut loan = self.loan();
        let before = loan.window();
        loan.follow(stalled, self.reserve);
        self.owes.store(loan.owed > 0, Relaxed);
        self.is_short.store(loan.is_short(stalled), Relaxed);
        Some(loan.window()).filter(|window| *window != before)
    }

    /// Leaves it to [`Readers::stall`] to tell of the next one; false if that has come meanwhile and told nobody.
    fn rest(&self) -> bool {
        self.is_watched.store(false, SeqCst);
        self.stalled.load(SeqCst) == 0 || self.is_watched.swap(true, SeqCst)
    }

    fn loan(&self) -> MutexGuard<'_, Loan> {
        self.loan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        let lent = self.loan().lent;
        self.reserve.take_back(lent);
    }
}

/// Counts the readers of a connection that stall, for whoever runs it.
pub(super) struct Watch {
    streams: Arc<Streams>,
    counts: Interval,
    is_counting: bool,
}

impl Watch {
    pub(super) fn new(streams: Arc<Streams>) -> Self {
        let mut counts = tokio::time::interval(PERIOD);
        counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { streams, counts, is_counting: false }
    }

    /// Waits until the connection's window is to be another one. Nothing is lost where that is given up.
    pub(super) async fn window(&mut self) -> u32 {
        let readers = &self.streams.readers;
        loop {
            if !self.is_counting {
                readers.stall.notified().await;
                self.is_counting = true;
                self.counts.reset();
            }
            self.counts.tick().await;
            let stalled = readers.stalled.load(SeqCst);
            if let Some(window) = readers.follow(stalled) {
                return window;
            }
            self.is_counting = stalled > 0 || !readers.rest();
        }
    }
}
