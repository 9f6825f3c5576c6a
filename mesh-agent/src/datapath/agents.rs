//! Who the agent is, and who was the agent before it and still has connections to see to.

use std::time::Duration;

use aya::maps::MapError;
use mesh_common::{ABI_VERSION, Agent, Draining};

use super::{Datapath, Error};
use crate::sys;

impl Datapath {
    /// Says who the agent is. From now on its own sockets pass.
    ///
    /// Their options are set by the connect hook; `keepalive` is one of them, in whole seconds, zero for none.
    pub fn introduce(&mut self, workers: u32, keepalive: Duration) -> Result<(), Error> {
        self.maps.flush_decisions()?;
        self.maps.flush_approvals()?;
        self.write_agent(workers, keepalive)
    }

    /// The same while the former agent, the process `pid` that has `started` then, still has connections: its sockets go
    /// on passing, and what is on its way to either agent arrives.
    ///
    /// New connections go to as many workers as it had, until [`Datapath::set_workers`].
    pub fn succeed(&mut self, pid: u32, started: u64, keepalive: Duration) -> Result<(), Error> {
        self.maps.flush_decisions()?;
        let agent = self.maps.agent.get(&0, 0)?;
        // Before its number is taken from it: at no moment is either of the two a stranger.
        self.maps.draining.insert(agent.tgid, Draining { started, pid, reserved: 0 }, 0)?;
        self.maps.agent.set(0, Agent { draining: self.draining().len() as u32, ..agent }, 0)?;
        self.write_agent(agent.workers, keepalive)
    }

    /// This process is the agent again: nobody has to look for it among the relieved.
    pub fn remain(&mut self, workers: u32, keepalive: Duration) -> Result<(), Error> {
        self.maps.flush_decisions()?;
        self.write_agent(workers, keepalive)?;
        self.forget_draining(own_tgid())
    }

    fn write_agent(&mut self, workers: u32, keepalive: Duration) -> Result<(), Error> {
        let agent = Agent {
            abi: ABI_VERSION,
            tgid: own_tgid(),
            workers,
            keepalive_s: keepalive.as_secs() as u32,
            pending: self.pending().len() as u32,
            draining: self.draining().len() as u32,
        };
        Ok(self.maps.agent.set(0, agent, 0)?)
    }

    /// Among how many workers new connections are shared out.
    pub fn set_workers(&mut self, workers: u32) -> Result<(), Error> {
        let agent = self.maps.agent.get(&0, 0)?;
        Ok(self.maps.agent.set(0, Agent { workers, ..agent }, 0)?)
    }

    /// Agents that were relieved, by what [`Datapath::forget_draining`] takes.
    pub fn draining(&self) -> Vec<(u32, Draining)> {
        self.maps.draining.iter().filter_map(Result::ok).collect()
    }

    /// A relieved agent is gone: another process that gets its number is no agent.
    pub fn forget_draining(&mut self, tgid: u32) -> Result<(), Error> {
        match self.maps.draining.remove(&tgid) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let agent = self.maps.agent.get(&0, 0)?;
        let draining = self.draining().len() as u32;
        if agent.draining != draining {
            self.maps.agent.set(0, Agent { draining, ..agent }, 0)?;
        }
        Ok(())
    }
}

/// This process as the programs see it. Kernels without tracepoints cannot say it; there, the node must not be a container.
fn own_tgid() -> u32 {
    sys::initial_tgid().unwrap_or_else(|_| std::process::id())
}
