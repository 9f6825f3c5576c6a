//! When which root signs and which are trusted: a root is announced before it signs, and trusted until nothing that it
//! signed is valid any more.

use std::time::{Duration, SystemTime};

use super::certificate::{SKEW, Validity};

/// How long things are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of a root that is made. The next one is made when four fifths have passed.
    pub root: Duration,
    /// Of an intermediate. The next one is made at half of it.
    pub intermediate: Duration,
    /// The most that a workload's certificate is given.
    pub leaf: Duration,
    /// How long a root is in the trust bundle before it signs: enough for the bundle to reach everybody.
    pub overlap: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        let days = |days: u64| Duration::from_hours(days * 24);
        Self { root: days(3650), intermediate: days(30), leaf: days(1), overlap: days(1) }
    }
}

/// How far the change to the next root has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is trusted, and does not sign yet.
    Announced,
    /// It signs; the old one is trusted still.
    Signing,
    /// The old one is of no use any more.
    Done,
}

/// How far the change to a next root has come. Only its own certificate says when it began, so that every reader of the
/// folder comes to the same result, after a restart too.
pub(super) fn phase(next: &Validity, lifetimes: &Lifetimes, now: SystemTime) -> Phase {
    let signs_from = next.from + SKEW + lifetimes.overlap;
    if now < signs_from {
        Phase::Announced
    } else if now < signs_from + lifetimes.leaf + SKEW {
        Phase::Signing
    } else {
        Phase::Done
    }
}

/// Whether it is time for a next root.
pub(super) fn wants_next(current: &Validity, now: SystemTime) -> bool {
    now >= current.at_percent(80)
}

/// Whether it is time for another intermediate.
pub(super) fn wants_intermediate(current: &Validity, now: SystemTime) -> bool {
    !current.holds(now) || now >= current.at_percent(50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_announced_before_it_signs_and_the_old_one_outlives_its_leaves() {
        let hour = Duration::from_hours(1);
        let lifetimes = Lifetimes { overlap: hour * 2, leaf: hour * 24, ..Lifetimes::default() };
        let made = SystemTime::UNIX_EPOCH + hour * 400_000;
        let next = Validity { from: made - SKEW, until: made + hour * 80_000 };
        let at = |since: Duration| phase(&next, &lifetimes, made + since);
        assert_eq!(at(Duration::ZERO), Phase::Announced);
        assert_eq!(at(Duration::from_secs(7199)), Phase::Announced);
        assert_eq!(at(hour * 2), Phase::Signing);
        // The last leaf of the old root was made just before and is valid for a day.
        assert_eq!(at(hour * 26), Phase::Signing);
        assert_eq!(at(hour * 26 + SKEW), Phase::Done);
    }

    #[test]
    fn an_intermediate_is_replaced_at_half_its_life_and_when_it_does_not_hold() {
        let from = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let validity = Validity { from, until: from + Duration::from_secs(1000) };
        assert!(!wants_intermediate(&validity, from + Duration::from_secs(499)));
        assert!(wants_intermediate(&validity, from + Duration::from_secs(500)));
        assert!(wants_intermediate(&validity, from - Duration::from_secs(1)), "the clock went back");
        assert!(!wants_next(&validity, from + Duration::from_secs(799)));
        assert!(wants_next(&validity, from + Duration::from_secs(800)));
    }
}
