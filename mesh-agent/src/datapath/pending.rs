//! Pods that are enrolled and not armed yet: their connects are counted, and refused if they are strict.

use aya::maps::MapError;
use mesh_common::{Pending, WORKLOAD_STRICT};

use super::{Datapath, Error, Slot};
use crate::model::Mode;

impl Datapath {
    /// Marks what runs in the cgroup or below it as a pod that is about to be armed; again, to change it. Counted in
    /// `slot`, which it will have then; `None` while nobody knows which workload it is.
    pub fn mark_pending(&mut self, cgroup: u64, slot: Option<Slot>, mode: Mode) -> Result<(), Error> {
        let flags = if mode == Mode::Strict { WORKLOAD_STRICT } else { 0 };
        self.maps.pending.insert(cgroup, Pending { slot: slot.map_or(0, |slot| slot.0), flags }, 0)?;
        self.pending.insert(cgroup);
        self.count_pending()
    }

    /// The opposite.
    pub fn unmark_pending(&mut self, cgroup: u64) -> Result<(), Error> {
        match self.maps.pending.remove(&cgroup) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        self.pending.remove(&cgroup);
        self.count_pending()
    }

    /// The cgroups that are marked.
    pub fn pending(&self) -> Vec<u64> {
        self.pending.iter().copied().collect()
    }

    /// Lets the programs look for marks, or not.
    fn count_pending(&mut self) -> Result<(), Error> {
        let pending = self.pending.len() as u32;
        let mut agent = self.maps.agent.get(&0, 0)?;
        if agent.pending != pending {
            agent.pending = pending;
            self.maps.agent.set(0, agent, 0)?;
        }
        Ok(())
    }
}
