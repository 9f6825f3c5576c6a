//! When to ask for a certificate. Pure: the time and the random numbers are arguments.

use std::time::Duration;

use rustls::pki_types::UnixTime;

/// After the first failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest pause between two attempts: an authority that is back is found within this time.
const LAST_RETRY: Duration = Duration::from_mins(1);

/// When to replace a certificate that was `issued` and `expires` then: at half of its lifetime, give or take a twentieth of
/// it, so that certificates that were given together are not replaced together. `random` is uniform over its range.
pub fn rotate_at(issued: UnixTime, expires: UnixTime, random: u32) -> UnixTime {
    let lifetime = expires.as_secs().saturating_sub(issued.as_secs());
    let spread = lifetime / 10;
    let drawn = (u128::from(spread) * u128::from(random)) >> 32;
    let after = lifetime / 2 - spread / 2 + drawn as u64;
    later(issued, Duration::from_secs(after))
}

/// How long to wait after `failures` (1 and more) in a row: doubling up to a minute, and between half of that and all of it,
/// so that those who failed together do not come back together. What cannot get better by itself waits longest from the
/// start.
pub fn retry_after(failures: u32, is_transient: bool, random: u32) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    let longest = if is_transient { doubled.min(LAST_RETRY) } else { LAST_RETRY };
    longest / 2 + (longest / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// `time` and `duration` after it, in whole seconds, rounded up: too late by less than a second, never too early.
pub(super) fn later(time: UnixTime, duration: Duration) -> UnixTime {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    UnixTime::since_unix_epoch(Duration::from_secs(time.as_secs().saturating_add(seconds)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 24 * 60 * 60;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn a_day_is_replaced_around_noon() {
        let rotate = |random| rotate_at(at(1000), at(1000 + DAY), random).as_secs() - 1000;
        assert_eq!(rotate(0), DAY * 45 / 100);
        assert_eq!(rotate(u32::MAX / 2), DAY / 2 - 1);
        assert_eq!(rotate(u32::MAX), DAY * 55 / 100 - 1);
    }

    #[test]
    fn the_pause_doubles_up_to_a_minute() {
        let longest = |failures| retry_after(failures, true, u32::MAX).as_secs();
        assert_eq!([1, 2, 3, 4, 5, 6, 7, 8, 100].map(longest), [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(retry_after(1, true, 0), Duration::from_millis(500));
        assert_eq!(retry_after(1, false, 0), Duration::from_secs(30));
    }

    proptest! {
        #[test]
        fn rotation_is_around_half_of_any_lifetime(issued: u64, lifetime: u64, random: u32) {
            let expires = issued.saturating_add(lifetime);
            let lifetime = u128::from(expires - issued);
            let after = u128::from(rotate_at(at(issued), at(expires), random).as_secs() - issued);
            // Whole seconds: up to two are lost in the divisions.
            prop_assert!(after * 100 + 200 >= lifetime * 45, "{after} of {lifetime}");
            prop_assert!(after * 100 <= lifetime * 55 + 100, "{after} of {lifetime}");
            prop_assert!(after <= lifetime);
        }

        #[test]
        fn what_expired_before_it_was_issued_is_replaced_at_once(issued: u64, before: u64, random: u32) {
            prop_assert_eq!(rotate_at(at(issued), at(issued.saturating_sub(before)), random), at(issued));
        }

        #[test]
        fn a_pause_is_never_nothing_and_never_more_than_a_minute(failures: u32, is_transient: bool, random: u32) {
            let pause = retry_after(failures, is_transient, random);
            prop_assert!(pause >= FIRST_RETRY / 2 && pause <= LAST_RETRY, "{pause:?}");
        }
    }
}
