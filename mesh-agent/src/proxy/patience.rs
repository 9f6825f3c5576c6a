//! How long a connection waits for the agent of another node. Agents learn at their own moments that a pod has joined the
//! mesh or left it, and one that is being restarted is away for a moment: neither is to end a connection of an app.

use std::time::{Duration, Instant};

use super::Error;
use crate::model::Reason;

/// How long in all. Who waits longer than that is better told.
pub(super) const AT_MOST: Duration = Duration::from_secs(2);
/// The first pause; each is twice as long as the last.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(200);

/// What is left of it for one connection.
#[derive(Debug, Default)]
pub(super) struct Patience {
    since: Option<Instant>,
    last: Duration,
}

impl Patience {
    /// How long to wait before everything is decided anew; `None` if that is of no use, or has been tried long enough.
    pub(super) fn after(&mut self, error: &Error, now: Instant) -> Option<Duration> {
        // Nobody has looked at it, so it may be repeated. Whatever else is answered, is answered by who is to answer.
        if !matches!(error, Error::Tunnel(Reason::PeerAbsent)) {
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) >= AT_MOST {
            return None;
        }
        self.last = (self.last * 2).clamp(SHORTEST, LONGEST);
        Some(self.last)
    }

    /// Whether it has begun to wait.
    pub(super) fn is_first(&self) -> bool {
        self.since.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn it_waits_longer_each_time_and_not_for_ever() {
        let mut patience = Patience::default();
        let begin = Instant::now();
        let mut now = begin;
        let mut pauses = Vec::new();
        while let Some(pause) = patience.after(&Error::Tunnel(Reason::PeerAbsent), now) {
            pauses.push(pause.as_millis());
            now += pause;
            assert!(pauses.len() < 100, "it never ends");
        }
        assert_eq!(pauses.get(..7).unwrap(), [10, 20, 40, 80, 160, 200, 200]);
        assert!((AT_MOST..AT_MOST + LONGEST).contains(&now.duration_since(begin)));
    }

    #[test]
    fn it_waits_for_nothing_that_has_been_answered() {
        let refused = || io::Error::from_raw_os_error(libc::ECONNREFUSED);
        for error in [
            Error::Connect(refused()),
            Error::Tunnel(Reason::UpstreamRefused),
            Error::Tunnel(Reason::PeerUnexpected),
            Error::Tunnel(Reason::UpstreamTimeout),
            Error::Refused(Reason::PolicyDenied),
        ] {
            assert_eq!(Patience::default().after(&error, Instant::now()), None, "{error}");
        }
    }
}
