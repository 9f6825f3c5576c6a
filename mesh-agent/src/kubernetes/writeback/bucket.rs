//! A bound on how often something is done: a bucket of tokens that fills by itself.

use std::time::{Duration, Instant};

/// The bucket. Time is an argument.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    size: f64,
    every: Duration,
    filled: Instant,
}

impl Bucket {
    /// A full one: `size` at once, then one `every` so often.
    pub(super) fn new(size: u32, every: Duration, now: Instant) -> Self {
        Self { tokens: size.into(), size: size.into(), every, filled: now }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let fresh = now.saturating_duration_since(self.filled).div_duration_f64(self.every);
        self.tokens = (self.tokens + fresh).min(self.size);
        self.filled = now;
        let has = self.tokens >= 1.0;
        if has {
            self.tokens -= 1.0;
        }
        has
    }
}
