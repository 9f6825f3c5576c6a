//! When to try again: later each time, and never all agents at once. Pure but for the dice.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// Pauses that double up to a limit, each shortened by up to half at random.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// The next pause; `dice` is from 0 to 1.
    pub(super) fn pause(&mut self, dice: f64) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.most);
        pause.mul_f64(1.0 - dice / 2.0)
    }

    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Another number from 0 to 1 each time. Not for secrets: std seeds its hashers from the system's randomness.
pub(super) fn dice() -> f64 {
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_differ() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        let pauses: Vec<_> = [0.0, 1.0, 0.5, 0.0, 1.0].map(|dice| backoff.pause(dice).as_millis()).into();
        assert_eq!(pauses, [200, 200, 600, 1000, 500]);
        backoff.reset();
        assert_eq!(backoff.pause(0.0), Duration::from_millis(200));
        let dice: Vec<_> = (0..100).map(|_| dice()).collect();
        assert!(dice.iter().all(|dice| (0.0..=1.0).contains(dice)), "{dice:?}");
        assert!(dice.iter().any(|dice| *dice < 0.5) && dice.iter().any(|dice| *dice > 0.5), "{dice:?}");
    }
}
