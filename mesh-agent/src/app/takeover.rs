//! Pods that another agent has, or had: their way from one agent to the other, and what became of the connections that came
//! meanwhile.

use std::sync::Arc;

use anyhow::Context;
use mesh_common::Counters;
use tokio::sync::oneshot;

use super::pods::{Enrolled, Pods, Stage};
use crate::{
    datapath::{Datapath, Listeners},
    model::{HandoverAccount, ObjectName},
    proxy::{Command, PodListeners, WorkerHandle},
};

impl Pods {
    /// What another agent has armed until now is there to be taken over.
    pub(super) fn succeed(&mut self, datapath: &Datapath, has_predecessor: bool) {
        self.adopted = datapath.slots();
        self.generation = self.generation.max(datapath.last_generation());
        self.has_predecessor = has_predecessor;
    }

    /// Whether none is on its way out.
    pub(super) fn are_settled(&self) -> bool {
        !self.enrolled.values().any(Enrolled::is_settling)
    }

    /// Another agent has had a try at them: all armed ones are armed anew, with their own listeners.
    pub(super) async fn arm_again(&mut self, datapath: &mut Datapath, workers: &[WorkerHandle]) -> anyhow::Result<()> {
        let names: Vec<ObjectName> = self.enrolled.keys().cloned().collect();
        for name in names {
            let generation = self.next_generation();
            let Some(known) = self.enrolled.get_mut(&name).filter(|pod| pod.stage == Stage::Armed) else { continue };
            let Some(limbo) = &known.limbo else { continue };
            let mut listeners = Listeners { outbound: Vec::new(), inbound: Vec::new(), limbo: limbo.try_clone()? };
            for worker in workers {
                let (answer, lent) = oneshot::channel();
                worker.send(Command::Lend(Arc::clone(&known.pod), answer));
                let PodListeners { outbound, inbound } = lent.await.context("a worker does not answer")?;
                listeners.outbound.push(outbound);
                listeners.inbound.push(inbound);
            }
            datapath.set_listeners(known.slot, &listeners)?;
            known.config.generation = generation;
            known.pod.set_generation(generation);
            datapath.arm(known.slot, known.pod.netns.file(), &known.config)?;
        }
        Ok(())
    }

    /// Whether the former agent has yet to say what came to it.
    pub(super) fn await_accounts(&self) -> bool {
        self.enrolled.values().any(|pod| pod.elsewhere.is_none())
    }

    /// It says so.
    pub(super) fn hear_accounts(&mut self, accounts: &[HandoverAccount]) {
        for pod in self.enrolled.values_mut().filter(|pod| pod.elsewhere.is_none()) {
            let account = accounts.iter().find(|account| account.cookie == pod.cookie);
            let explained = account.map_or(0, |account| account.explained);
            pod.elsewhere = Some(explained.saturating_sub(handed_over(&pod.base)));
        }
    }

    /// It has ended without having said so: what is missing by now came to it.
    pub(super) fn give_up_accounts(&mut self, datapath: &Datapath) {
        for pod in self.enrolled.values_mut().filter(|pod| pod.elsewhere.is_none()) {
            let (handed, accepted) = pod.handed_and_accepted(datapath);
            pod.elsewhere = Some(handed.saturating_sub(accepted));
        }
    }
}

impl Enrolled {
    /// What the kernel handed over since, and what of it was accepted here. The kernel first: what it counts afterwards,
    /// ours may have, and never the other way round.
    fn handed_and_accepted(&self, datapath: &Datapath) -> (u64, u64) {
        let counted = datapath.counters(self.slot).unwrap_or_default();
        (handed_over(&counted.since(&self.base)), self.accepted())
    }

    /// Up to where the kernel's count is explained, by this agent or those before it.
    pub(super) fn explained(&self) -> u64 {
        handed_over(&self.base) + self.elsewhere.unwrap_or(0) + self.accepted()
    }

    fn accepted(&self) -> u64 {
        self.pod.counters.iter().map(|own| own.outbound.accepted() + own.inbound.accepted()).sum()
    }

    /// Connections that the kernel handed over and nobody dealt with.
    pub(super) fn unaccounted(&self, datapath: &Datapath) -> u64 {
        let (handed, accepted) = self.handed_and_accepted(datapath);
        self.elsewhere.map_or(0, |elsewhere| handed.saturating_sub(accepted + elsewhere))
    }
}

/// Connections that the kernel handed over to an agent.
pub(super) fn handed_over(counters: &Counters) -> u64 {
    counters.out_established + counters.out_orphaned + counters.in_established
}
