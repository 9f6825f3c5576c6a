//! A worker's part: flows and refusals, counted by whoever owns the shard.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, mpsc},
};

use super::{super::Count, KEPT};
use crate::model::{Direction, Identity, ObjectName, Peer, PlaintextReason, Reason};

/// Flows that a worker tells apart; further ones are summed up by pod, direction and reason.
const MAX_FLOWS: usize = 1024;
/// The same for refusals, summed up by pod, direction and reason.
const MAX_REFUSALS: usize = 256;

/// What plaintext connections are summed up by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Who opened them.
    pub direction: Direction,
    /// The pod of this node.
    pub pod: ObjectName,
    /// The other end.
    pub peer: Peer,
    /// The port that was called.
    pub port: u16,
    /// Why in plaintext.
    pub reason: PlaintextReason,
}

impl FlowKey {
    /// The key of all peers that are not told apart.
    pub fn others(&self) -> Self {
        Self { peer: Peer::Others, port: 0, ..self.clone() }
    }
}

/// Connections of one key. Counted by one worker only.
#[derive(Debug)]
pub struct Flow {
    /// What they have in common.
    pub key: FlowKey,
    /// Identity of the pod of this node, if known.
    pub pod_identity: Option<Arc<Identity>>,
    /// Identity that the mesh's configuration gives the peer, if known.
    pub peer_identity: Option<Arc<Identity>>,
    /// When the first one was opened, in Unix seconds.
    pub first_seen: u64,
    /// Opened.
    pub opened: Count,
    /// Ended.
    pub closed: Count,
    /// Bytes from the pod of this node.
    pub from_pod: Count,
    /// Bytes to the pod of this node.
    pub to_pod: Count,
    /// When it last counted anything, in Unix seconds. Written by the ledger.
    pub last_seen: Count,
}

/// What refusals are summed up by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RefusalKey {
    /// Seen from the pod of this node.
    pub direction: Direction,
    /// The pod of this node.
    pub pod: ObjectName,
    /// Who called, if known.
    pub source_identity: Option<Arc<Identity>>,
    /// From where; `None` for several.
    pub source_address: Option<IpAddr>,
    /// Who was called.
    pub destination: Peer,
    /// Its identity, if known.
    pub destination_identity: Option<Arc<Identity>>,
    /// On which port; 0 for several.
    pub port: u16,
    /// Why not.
    pub reason: Reason,
    /// The object that decided, if one did.
    pub decided_by: Option<Arc<str>>,
}

impl RefusalKey {
    fn others(&self) -> Self {
        let (source_identity, source_address, destination_identity) = (None, None, None);
        let (destination, port) = (Peer::Others, 0);
        Self { source_identity, source_address, destination, destination_identity, port, ..self.clone() }
    }
}

/// Refusals of one key. Counted by one worker only.
#[derive(Debug)]
pub struct Refusal {
    /// What they have in common.
    pub key: RefusalKey,
    /// When the first one happened, in Unix seconds.
    pub first_seen: u64,
    /// How many.
    pub count: Count,
    /// When the last one was noticed, in Unix seconds. Written by the ledger.
    pub last_seen: Count,
}

/// What a shard tells the ledger: that there is something new to read.
#[derive(Debug)]
pub enum News {
    /// A flow.
    Flow(Arc<Flow>),
    /// A refusal.
    Refusal(Arc<Refusal>),
    /// A flow that was summed up with others for want of room.
    SummedUp,
}

/// The ledger's end of a shard.
#[derive(Debug)]
pub struct Feed(pub(super) mpsc::Receiver<News>);

/// The worker's end.
#[derive(Debug)]
pub struct Shard {
    flows: RefCell<HashMap<FlowKey, Arc<Flow>>>,
    refusals: RefCell<HashMap<RefusalKey, Arc<Refusal>>>,
    /// The minute in which room was last made for flows, and for refusals: once in a minute is enough.
    swept: [Cell<u64>; 2],
    tell: mpsc::Sender<News>,
}

/// A worker's shard and where its news come out.
pub fn shard() -> (Shard, Feed) {
    let (tell, feed) = mpsc::channel();
    (Shard { flows: RefCell::default(), refusals: RefCell::default(), swept: Default::default(), tell }, Feed(feed))
}

impl Shard {
    /// The flow of a plaintext connection that was just made; it is counted as opened. `now` is asked for new flows only.
    pub fn open(
        &self,
        key: FlowKey,
        identities: (Option<&Arc<Identity>>, Option<&Arc<Identity>>),
        now: impl FnOnce() -> u64,
    ) -> Arc<Flow> {
        let mut flows = self.flows.borrow_mut();
        let flow = if let Some(flow) = flows.get(&key) {
            Arc::clone(flow)
        } else {
            let now = now();
            let [of_flows, _] = &self.swept;
            let has_room = has_room(&mut flows, MAX_FLOWS, (of_flows, now), |flow: &Flow| {
                flow.opened.value() > flow.closed.value() || is_recent(&flow.last_seen, now)
            });
            let (key, (own, peer)) = if has_room {
                (key, identities)
            } else {
                let _ = self.tell.send(News::SummedUp);
                (key.others(), (identities.0, None))
            };
            let flow = flows.entry(key).or_insert_with_key(|key| {
                let flow = Arc::new(Flow::new(key.clone(), own.cloned(), peer.cloned(), now));
                let _ = self.tell.send(News::Flow(Arc::clone(&flow)));
                flow
            });
            Arc::clone(flow)
        };
        flow.opened.add(1);
        flow
    }

    /// Counts a refused connection. `now` is asked for new ones only.
    pub fn refuse(&self, key: RefusalKey, now: impl FnOnce() -> u64) {
        let mut refusals = self.refusals.borrow_mut();
        if let Some(refusal) = refusals.get(&key) {
            refusal.count.add(1);
            return;
        }
        let now = now();
        let [_, of_refusals] = &self.swept;
        let key = if has_room(&mut refusals, MAX_REFUSALS, (of_refusals, now), |refusal: &Refusal| {
            is_recent(&refusal.last_seen, now)
        }) {
            key
        } else {
            key.others()
        };
        let refusal = refusals.entry(key).or_insert_with_key(|key| {
            let refusal =
                Refusal { key: key.clone(), first_seen: now, count: Count::default(), last_seen: Count::default() };
            refusal.last_seen.set(now);
            let refusal = Arc::new(refusal);
            let _ = self.tell.send(News::Refusal(Arc::clone(&refusal)));
            refusal
        });
        refusal.count.add(1);
    }
}

impl Flow {
    fn new(key: FlowKey, own: Option<Arc<Identity>>, peer: Option<Arc<Identity>>, now: u64) -> Self {
        let flow = Self {
            key,
            pod_identity: own,
            peer_identity: peer,
            first_seen: now,
            opened: Count::default(),
            closed: Count::default(),
            from_pod: Count::default(),
            to_pod: Count::default(),
            last_seen: Count::default(),
        };
        flow.last_seen.set(now);
        flow
    }
}

fn is_recent(last_seen: &Count, now: u64) -> bool {
    last_seen.value() + KEPT > now
}

/// Whether another entry fits, once those that are of no use any more are gone.
fn has_room<K: Eq + Hash, V>(
    map: &mut HashMap<K, Arc<V>>,
    most: usize,
    (swept, now): (&Cell<u64>, u64),
    is_of_use: impl Fn(&V) -> bool,
) -> bool {
    if map.len() >= most && swept.replace(now / 60) != now / 60 {
        map.retain(|_, value| is_of_use(value));
    }
    map.len() < most
}
