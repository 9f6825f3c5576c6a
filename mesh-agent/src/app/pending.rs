//! Pods that are enrolled and not armed yet: the kernel counts what they connect to, and refuses it if they are strict.

use super::pods::{Pods, Stage, may_be_armed};
use crate::{
    datapath::{Datapath, Slot},
    model::{Mesh, Mode, PodUid, Workload},
};

/// A pod whose cgroup is there and that is not armed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    /// Where it is counted, and what it will have when it is armed.
    pub(super) slot: Slot,
    cgroup: u64,
    mode: Mode,
}

impl Pods {
    /// Marks all that are to be armed and are not, and no others.
    pub(super) fn mark_all(&mut self, datapath: &mut Datapath, mesh: &Mesh) {
        let is_stale = |(uid, pending): &(&PodUid, &Pending)| {
            let wanted = self.by_uid.get(*uid).and_then(|workload| self.to_be_marked(mesh, workload));
            wanted != Some(pending.cgroup)
        };
        let stale: Vec<PodUid> = self.pending.iter().filter(is_stale).map(|(uid, _)| uid.clone()).collect();
        for uid in stale {
            self.forget_pending(datapath, &uid);
        }
        self.to_mark = self.by_uid.values().cloned().collect();
        self.mark_some(datapath, mesh, usize::MAX);
    }

    /// Marks some of those that are waiting for it.
    pub(super) fn mark_some(&mut self, datapath: &mut Datapath, mesh: &Mesh, count: usize) {
        for _ in 0..count {
            let Some(workload) = self.to_mark.pop_front() else { return };
            self.mark(datapath, mesh, &workload);
        }
    }

    /// Marks the workload if it is to be armed and is not.
    fn mark(&mut self, datapath: &mut Datapath, mesh: &Mesh, workload: &Workload) {
        let (Some(uid), Some(cgroup)) = (&workload.uid, self.to_be_marked(mesh, workload)) else { return };
        let mode = workload.mode;
        let known = self.pending.get(uid).copied();
        if known.is_some_and(|known| known.mode == mode && known.cgroup == cgroup) {
            return;
        }
        let slot = match known {
            Some(known) => Ok(known.slot),
            None => self.new_slot(datapath).map(|(slot, _)| slot),
        };
        let marked = slot.and_then(|slot| Ok(datapath.mark_pending(cgroup, Some(slot), mode).map(|()| slot)?));
        match marked {
            Ok(slot) => {
                self.pending.insert(uid.clone(), Pending { slot, cgroup, mode });
            }
            Err(error) => tracing::error!(%uid, %error, "a pod that is not armed yet cannot be watched"),
        }
    }

    /// The cgroup of a workload that is to be armed and is not.
    fn to_be_marked(&self, mesh: &Mesh, workload: &Workload) -> Option<u64> {
        let uid = workload.uid.as_ref().filter(|_| workload.netns.is_none() && may_be_armed(mesh, workload))?;
        let is_armed = self.enrolled.get(&workload.name).is_some_and(|pod| pod.is_armed_as(uid));
        self.networks.seen(uid).filter(|_| !is_armed).map(|seen| seen.cgroup)
    }

    /// The pod is armed: the mark has served.
    pub(super) fn unmark(&mut self, datapath: &mut Datapath, workload: &Workload) {
        if let Some(uid) = &workload.uid {
            self.forget_pending(datapath, uid);
        }
    }

    /// Removes the marks that an earlier agent left.
    pub(super) fn unmark_others(&self, datapath: &mut Datapath) {
        let own: Vec<u64> = self.pending.values().map(|pending| pending.cgroup).collect();
        for cgroup in datapath.pending().into_iter().filter(|cgroup| !own.contains(cgroup)) {
            if let Err(error) = datapath.unmark_pending(cgroup) {
                tracing::warn!(%error, "a mark that an earlier agent left cannot be removed");
            }
        }
    }

    fn forget_pending(&mut self, datapath: &mut Datapath, uid: &PodUid) {
        let Some(pending) = self.pending.remove(uid) else { return };
        if let Err(error) = datapath.unmark_pending(pending.cgroup) {
            tracing::error!(%uid, %error, "a pod's mark cannot be removed");
        }
    }
}

impl super::pods::Enrolled {
    fn is_armed_as(&self, uid: &PodUid) -> bool {
        self.stage == Stage::Armed && self.uid.as_ref() == Some(uid)
    }
}
