//! Where the network of each pod is: by the name that its manifest gives, or as found in the cgroup tree.

use std::{
    collections::{HashMap, HashSet},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
};

use tokio::sync::mpsc::UnboundedReceiver;

use crate::{
    model::{PodUid, Workload},
    net::netns::Netns,
    node::Event,
};

/// The pods of this node as the cgroup tree shows them.
#[derive(Debug, Default)]
pub(super) struct Networks {
    pods: HashMap<PodUid, Seen>,
    /// Those whose cgroup was there and is not any more.
    ended: HashSet<PodUid>,
}

/// A pod in the cgroup tree.
#[derive(Debug)]
pub(super) struct Seen {
    /// Id of its cgroup.
    pub(super) cgroup: u64,
    netns: Option<Arc<Netns>>,
}

/// Where a pod's network namespace is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Network<'a> {
    /// A manifest names it.
    Named(&'a Path),
    /// A process of the pod is in it, or was.
    Found(&'a Arc<Netns>),
}

/// Waits until all pods that run already are known.
pub(super) async fn settled(events: &mut UnboundedReceiver<Event>) -> Networks {
    let mut networks = Networks::default();
    while let Some(event) = events.recv().await {
        if matches!(event, Event::Settled) {
            break;
        }
        let _ = networks.note(event);
    }
    networks
}

impl Networks {
    /// The pods in the cgroup tree, each with the id of its cgroup and the inode of its network namespace, if that is known.
    pub(super) fn found(&self) -> impl Iterator<Item = (&PodUid, u64, Option<u64>)> {
        let inode = |seen: &Seen| seen.netns.as_ref().map(|netns| netns.id().inode());
        self.pods.iter().map(move |(uid, seen)| (uid, seen.cgroup, inode(seen)))
    }

    /// Takes in what was found, and says of whom.
    pub(super) fn note(&mut self, event: Event) -> Option<PodUid> {
        let about = match &event {
            Event::Created { uid, .. } | Event::Found { uid, .. } | Event::Gone { uid } => Some(uid.clone()),
            Event::OnHost { .. } | Event::Settled => None,
        };
        match event {
            Event::Created { uid, cgroup } => {
                self.ended.remove(&uid);
                self.pods.insert(uid, Seen { cgroup, netns: None });
            }
            Event::Found { uid, netns } => {
                if let Some(seen) = self.pods.get_mut(&uid) {
                    seen.netns = Some(netns);
                }
            }
            Event::Gone { uid } => {
                if self.pods.remove(&uid).is_some() {
                    self.ended.insert(uid);
                }
            }
            // What its object says of it is what is reported.
            Event::OnHost { .. } | Event::Settled => {}
        }
        about
    }

    /// A pod, if its cgroup is there.
    pub(super) fn seen(&self, uid: &PodUid) -> Option<&Seen> {
        self.pods.get(uid)
    }

    /// Whether nothing of a pod runs any more, which the API server comes to know later.
    pub(super) fn has_ended(&self, uid: &PodUid) -> bool {
        self.ended.contains(uid)
    }

    /// Of pods that have ended only those are remembered.
    pub(super) fn retain_ended(&mut self, is_known: impl Fn(&PodUid) -> bool) {
        self.ended.retain(is_known);
    }

    /// Where the workload's network namespace is, if that is known.
    pub(super) fn of<'a>(&'a self, workload: &'a Workload) -> Option<Network<'a>> {
        match (&workload.netns, &workload.uid) {
            (Some(path), _) => path.exists().then_some(Network::Named(path)),
            (None, Some(uid)) => self.pods.get(uid)?.netns.as_ref().map(Network::Found),
            (None, None) => None,
        }
    }
}

impl Network<'_> {
    /// Opens it.
    ///
    /// # Errors
    /// There is nothing of that name.
    pub(super) fn open(&self) -> std::io::Result<Arc<Netns>> {
        match self {
            Self::Named(path) => Netns::open(path).map(Arc::new),
            Self::Found(netns) => Ok(Arc::clone(netns)),
        }
    }

    /// The inode that it has now, if there is anything of that name.
    pub(super) fn inode(&self) -> Option<u64> {
        match self {
            Self::Named(path) => path.metadata().ok().map(|metadata| metadata.ino()),
            Self::Found(found) => Some(found.id().inode()),
        }
    }

    /// Whether this is it. A name may have come to lead elsewhere: [`Netns::is_still_there`] tells.
    pub(super) fn is(&self, netns: &Netns) -> bool {
        match self {
            Self::Named(path) => netns.path() == *path,
            Self::Found(found) => netns.id() == found.id(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_ended_when_its_cgroup_was_there_and_is_gone() {
        let [one, other] = ['a', 'b'].map(|digit| PodUid::parse(&digit.to_string().repeat(32)).unwrap());
        let mut networks = Networks::default();
        let gone = |uid: &PodUid| Event::Gone { uid: uid.clone() };
        networks.note(gone(&one));
        assert!(!networks.has_ended(&one), "it was never seen");
        for uid in [&one, &other] {
            networks.note(Event::Created { uid: uid.clone(), cgroup: 1 });
            networks.note(gone(uid));
            assert!(networks.has_ended(uid));
        }
        networks.note(Event::Created { uid: other.clone(), cgroup: 2 });
        assert!(!networks.has_ended(&other), "it runs again");
        networks.retain_ended(|uid| *uid != one);
        assert!(!networks.has_ended(&one));
    }
}
