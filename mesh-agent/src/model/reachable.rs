//! What is known of a destination.

/// Whether a destination answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachable {
    /// It does.
    Open,
    /// Connecting to it fails at once, with this errno.
    Refused(i32),
    /// Nobody knows (any more).
    Unknown,
}
