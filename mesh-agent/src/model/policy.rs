//! What is allowed to reach a workload, as data: what the objects say, joined per workload. [`crate::policy`] decides.

use super::Mode;

/// What is allowed to reach a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InboundPolicy {
    /// What becomes of plaintext, where no port says otherwise.
    pub mode: Mode,
    /// What becomes of plaintext to single ports, sorted.
    pub ports: Vec<(u16, Mode)>,
}

impl InboundPolicy {
    /// What becomes of plaintext to `port`.
    pub fn mode_of(&self, port: u16) -> Mode {
        self.ports.iter().find(|(own, _)| *own == port).map_or(self.mode, |(_, mode)| *mode)
    }
}
