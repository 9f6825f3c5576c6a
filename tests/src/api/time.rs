//! Times as metadata has them: RFC 3339, whole seconds, UTC.

use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;

/// Now.
pub(super) fn now() -> String {
    after(0)
}

/// So many seconds from now.
pub(super) fn after(seconds: u64) -> String {
    at(self::seconds().saturating_add_unsigned(seconds))
}

/// Of seconds since 1970.
pub(super) fn at(seconds: i64) -> String {
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Seconds since 1970.
pub(super) fn seconds() -> i64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
