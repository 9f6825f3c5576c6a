//! Streams that wait for a connection which others have filled.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// What any stream may send at first (RFC 9113, 6.9.2): one that waits with less does not wait for its own window.
pub(super) const FIRST_WINDOW: usize = 65_535;
/// For so long that is nothing to speak of.
const PATIENCE: Duration = Duration::from_secs(1);

/// Since when streams of a connection could not even send what any stream may, and none of them has gone on. That some
/// have given up makes it no better.
#[derive(Debug, Default)]
pub(super) struct Starved(Mutex<Option<Instant>>);

impl Starved {
    /// One begins to wait.
    pub(super) fn begin(&self) {
        self.since().get_or_insert_with(Instant::now);
    }

    /// One goes on.
    pub(super) fn end(&self) {
        self.since().take();
    }

    /// Whether that has lasted.
    pub(super) fn has_lasted(&self) -> bool {
        self.since().is_some_and(|since| since.elapsed() >= PATIENCE)
    }

    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_full_when_nobody_gets_anything_for_a_while() {
        let starved = Starved::default();
        assert!(!starved.has_lasted());
        starved.begin();
        assert!(!starved.has_lasted());
        tokio::time::advance(PATIENCE / 2).await;
        starved.begin();
        tokio::time::advance(PATIENCE / 2).await;
        assert!(starved.has_lasted(), "since the first one");
        starved.end();
        assert!(!starved.has_lasted(), "it moves");
        starved.begin();
        assert!(!starved.has_lasted(), "not for long");
    }
}
