//! Other processes of this node: agents that come and go.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A process; not another one that has got its number since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Its number.
    pub(super) pid: u32,
    /// When it started, in clock ticks since boot.
    pub(super) started: u64,
}

impl Process {
    /// The process with that number, if there is one.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, started: started(&stat)? })
    }

    /// Whether it runs still.
    pub(super) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// This process may not.
    pub(super) fn kill(self) -> nix::Result<()> {
        match i32::try_from(self.pid) {
            Ok(pid) if self.is_alive() => kill(Pid::from_raw(pid), Signal::SIGKILL),
            _ => Ok(()),
        }
    }
}

/// When the process started (proc_pid_stat(5), field 22). `None` of one that has ended and was not waited for yet. It has
/// not as long as any of its threads runs (field 20): until then it has its files, and the locks on them.
fn started(stat: &str) -> Option<u64> {
    // The second field is a name in parentheses, in which anything may be.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?;
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    if state == "X" || (state == "Z" && threads <= 1) {
        return None;
    }
    fields.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_read_whatever_the_name() {
        let rest = "S 1 2 3 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1000";
        assert_eq!(started(&format!("7 (mesh-agent) {rest}")), Some(4711));
        assert_eq!(started(&format!("7 (a) Z (b) {rest}")), Some(4711));
        let ended = rest.replace('S', "Z");
        assert_eq!(started(&format!("7 (mesh-agent) {ended}")), None);
        let ending = ended.replace("20 0 1 0", "20 0 3 0");
        assert_eq!(started(&format!("7 (mesh-agent) {ending}")), Some(4711), "other threads run still");
        assert_eq!(started("7 (mesh-agent) S 1"), None);
    }

    #[test]
    fn this_process_runs_and_another_start_is_another_process() {
        let own = Process::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(!Process { started: own.started + 1, ..own }.is_alive());
    }
}
