//! Sums by minute.

use std::collections::VecDeque;

/// Something that adds up.
pub(super) trait Sum: Copy + Default {
    /// Adds.
    fn plus(&mut self, other: &Self);
}

/// Sums of the minutes in which there was anything.
#[derive(Clone, Debug, Default)]
pub(super) struct Window<T>(VecDeque<(u64, T)>);

impl<T: Sum> Window<T> {
    /// Adds to a minute, which is not before the latest one.
    pub(super) fn add(&mut self, minute: u64, value: &T) {
        match self.0.back_mut() {
            // Should the clock have been set back, the latest minute it is.
            Some((latest, sum)) if *latest >= minute => sum.plus(value),
            _ => {
                let mut sum = T::default();
                sum.plus(value);
                self.0.push_back((minute, sum));
            }
        }
    }

    /// Forgets the minutes before.
    pub(super) fn forget_before(&mut self, minute: u64) {
        while self.0.front().is_some_and(|(own, _)| *own < minute) {
            self.0.pop_front();
        }
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sum from a minute on.
    pub(super) fn sum_from(&self, minute: u64) -> T {
        let mut sum = T::default();
        for (_, value) in self.0.iter().rev().take_while(|(own, _)| *own >= minute) {
            sum.plus(value);
        }
        sum
    }
}
