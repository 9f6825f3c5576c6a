//! Waiting for a condition that makes no event.

use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};

/// How long anything may take before a test gives up. Generous: a slow machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// What happens at once has happened by then, on a slow machine too: half of the shortest timeout (the agent's, for
/// connects) that it would have to wait for otherwise.
pub const AT_ONCE: Duration = Duration::from_secs(5);
/// Time between looks.
const PERIOD: u8 = 5;

/// Looks until `look` finds something, and returns it.
///
/// # Panics
/// When that takes longer than [`PATIENCE`]; says what was waited for.
#[track_caller]
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look)
}

/// As [`eventually`], with another deadline.
///
/// # Panics
/// When the deadline passes.
#[track_caller]
pub fn within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        let _ = poll(&mut [], PollTimeout::from(PERIOD));
    }
}
