//! How much anybody may ask for.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// What the authority's server allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address.
    pub connections_per_address: usize,
    /// Calls at once on a connection.
    pub streams: u32,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long a call may take.
    pub call: Duration,
    /// How long a connection may be without a call.
    pub idle: Duration,
    /// How long a connection may be used: a client certificate is verified when it begins.
    pub age: Duration,
    /// Calls per second and caller, over a longer time.
    pub rate: u32,
    /// Calls of a caller at once after a pause: as many as a node has identities.
    pub burst: u32,
    /// Calls without valid credentials, after which a connection is closed.
    pub strangers: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_address: 256,
            streams: 64,
            handshake: Duration::from_secs(10),
            call: Duration::from_secs(10),
            idle: Duration::from_mins(5),
            age: Duration::from_mins(30),
            rate: 20,
            burst: 1000,
            strangers: 8,
        }
    }
}

/// Longest message of a caller, in bytes: a request and its metadata.
pub(super) const MAX_MESSAGE: usize = 64 * 1024;
/// Longest header list, in bytes: tokens have 1 to 2 KiB.
pub(super) const MAX_HEADERS: u32 = 16 * 1024;

/// A bucket of tokens per caller.
#[derive(Debug, Default)]
pub(super) struct Rates {
    buckets: Mutex<HashMap<Arc<str>, (f64, Instant)>>,
}

impl Rates {
    /// Whether `caller` may call now; it has then.
    pub(super) fn take(&self, caller: &str, limits: &Limits, now: Instant) -> bool {
        let (rate, burst) = (f64::from(limits.rate), f64::from(limits.burst));
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |(left, at): &(f64, Instant)| (left + now.duration_since(*at).as_secs_f64() * rate).min(burst);
        if buckets.len() > 10_000 {
            buckets.retain(|_, bucket| full(bucket) < burst);
        }
        let left = buckets.get(caller).map_or(burst, full);
        let is_allowed = left >= 1.0;
        buckets.insert(caller.into(), (if is_allowed { left - 1.0 } else { left }, now));
        is_allowed
    }
}

/// Connections that are open, by address.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One of them, until dropped.
#[derive(Debug)]
pub(super) struct Connected {
    all: Arc<Connections>,
    address: IpAddr,
}

impl Connections {
    /// `None` if there are enough.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, limits: &Limits) -> Option<Connected> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = open.values().sum();
        let own = open.entry(address).or_default();
        if all >= limits.connections || *own >= limits.connections_per_address {
            if *own == 0 {
                open.remove(&address);
            }
            return None;
        }
        *own += 1;
        Some(Connected { all: Arc::clone(self), address })
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut open = self.all.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_a_burst_and_then_a_rate() {
        let limits = Limits { rate: 2, burst: 3, ..Limits::default() };
        let (rates, start) = (Rates::default(), Instant::now());
        let taken = |caller, at| (0..10).filter(|_| rates.take(caller, &limits, at)).count();
        assert_eq!(taken("n1", start), 3);
        assert_eq!(taken("n2", start), 3, "each has its own");
        assert_eq!(taken("n1", start + Duration::from_secs(1)), 2);
        assert_eq!(taken("n1", start + Duration::from_mins(1)), 3, "no more than a burst is saved up");
    }

    #[test]
    fn connections_are_counted_by_address_and_in_all() {
        let limits = Limits { connections: 3, connections_per_address: 2, ..Limits::default() };
        let connections = Arc::new(Connections::default());
        let enter = |last: u8| connections.enter(IpAddr::from([10, 0, 0, last]), &limits);
        let (first, _second) = (enter(1).unwrap(), enter(1).unwrap());
        assert!(enter(1).is_none());
        let _third = enter(2).unwrap();
        assert!(enter(3).is_none());
        drop(first);
        drop(enter(3).unwrap());
        assert_eq!(connections.open.lock().unwrap().len(), 2, "nothing is kept of those who left");
    }
}
