//! The control thread's part: what the workers and the kernel counted, by minute.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use super::{
    Feed, Flow, FlowKey, KEPT, News, Refusal, RefusalKey,
    window::{Sum, Window},
};
use crate::model::{
    Audit, Coverage, Direction, Identity, Interval, ObjectName, Peer, PlaintextFlow, PlaintextReason, PodState,
    Refused, Shares, Unobserved, Volume,
};

/// Rows that are told apart; further flows are summed up by pod, direction and reason.
const MAX_ROWS: usize = 2048;
/// Refusals that are remembered; the oldest go first.
const MAX_REFUSED: usize = 256;
/// Times that a pod's observation began which are remembered.
const MAX_INTERVALS: usize = 64;

/// Why connections pass without the agent, in the order of [`PodSample::unseen`].
pub const UNSEEN: [(Direction, PlaintextReason); 7] = [
    (Direction::Outbound, PlaintextReason::Excluded),
    (Direction::Outbound, PlaintextReason::AgentUnavailable),
    (Direction::Outbound, PlaintextReason::Unredirectable),
    (Direction::Outbound, PlaintextReason::NoAddress),
    (Direction::Inbound, PlaintextReason::NodeItself),
    (Direction::Inbound, PlaintextReason::Excluded),
    (Direction::Inbound, PlaintextReason::AgentUnavailable),
];

/// What is counted of one pod, since the agent took it over.
#[derive(Clone, Copy, Debug)]
pub struct PodSample {
    /// Tells incarnations of a pod apart: another one counts from zero.
    pub instance: u64,
    /// Whether its connections are captured now.
    pub armed: bool,
    /// What went encrypted and locally; plaintext is counted by flow.
    pub shares: Shares,
    /// Connections that passed without the agent, by [`UNSEEN`].
    pub unseen: [u64; UNSEEN.len()],
    /// The same from before this agent.
    pub unseen_before: [u64; UNSEEN.len()],
}

#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    connections: u64,
    from_pod: u64,
    to_pod: u64,
}

impl Sum for Moved {
    fn plus(&mut self, other: &Self) {
        self.connections += other.connections;
        self.from_pod += other.from_pod;
        self.to_pod += other.to_pod;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counted {
    mutual: Volume,
    local: Volume,
    unseen: [u64; UNSEEN.len()],
}

impl Sum for Counted {
    fn plus(&mut self, other: &Self) {
        self.mutual.add(other.mutual);
        self.local.add(other.local);
        for (own, other) in self.unseen.iter_mut().zip(other.unseen) {
            *own += other;
        }
    }
}

impl Counted {
    fn of(sample: &PodSample) -> Self {
        Self { mutual: sample.shares.mutual, local: sample.shares.local, unseen: sample.unseen }
    }

    /// What has come since `before`; all of it where something has become less, which only a new count does.
    fn since(&self, before: &Self) -> Self {
        let fields = |c: &Self| [c.mutual.connections, c.mutual.bytes, c.local.connections, c.local.bytes];
        let less = fields(self).iter().zip(fields(before)).any(|(now, before)| *now < before)
            || self.unseen.iter().zip(before.unseen).any(|(now, before)| *now < before);
        if less {
            return *self;
        }
        let minus =
            |a: Volume, b: Volume| Volume { connections: a.connections - b.connections, bytes: a.bytes - b.bytes };
        let mut unseen = self.unseen;
        for (own, before) in unseen.iter_mut().zip(before.unseen) {
            *own -= before;
        }
        Self { mutual: minus(self.mutual, before.mutual), local: minus(self.local, before.local), unseen }
    }
}

/// A flow of a worker and what of it has been read.
struct Tracked {
    flow: Arc<Flow>,
    row: FlowKey,
    read: Moved,
}

/// What is known of one key, whichever workers saw it.
struct Row {
    pod_identity: Option<Arc<Identity>>,
    peer_identity: Option<Arc<Identity>>,
    window: Window<Moved>,
    open: u64,
    first_seen: u64,
    last_seen: u64,
}

#[derive(Default)]
struct PodLedger {
    instance: u64,
    read: Counted,
    before: [u64; UNSEEN.len()],
    window: Window<Counted>,
    observed: VecDeque<Interval>,
}

struct TrackedRefusal {
    refusal: Arc<Refusal>,
    read: u64,
}

#[derive(Clone, Copy)]
struct RefusedRow {
    count: u64,
    first_seen: u64,
    last_seen: u64,
}

/// Everything that was read.
pub struct Ledger {
    feeds: Vec<Feed>,
    started: u64,
    flows: Vec<Tracked>,
    rows: HashMap<FlowKey, Row>,
    refusals: Vec<TrackedRefusal>,
    refused: HashMap<RefusalKey, RefusedRow>,
    pods: BTreeMap<ObjectName, PodLedger>,
    summed_up: u64,
}

impl Ledger {
    /// Of workers that start now.
    pub fn new(feeds: Vec<Feed>, now: u64) -> Self {
        Self {
            feeds,
            started: now,
            flows: Vec::new(),
            rows: HashMap::new(),
            refusals: Vec::new(),
            refused: HashMap::new(),
            pods: BTreeMap::new(),
            summed_up: 0,
        }
    }

    /// Reads all counts: often, so that they fall into the right minute, and before every report. `pods` are all that have
    /// a slot in the kernel.
    pub fn sample<'a>(&mut self, now: u64, pods: impl Iterator<Item = (&'a ObjectName, PodSample)>) {
        self.read_news();
        self.read_flows(now);
        self.read_refusals(now);
        self.read_pods(now, pods);
        let oldest = now.saturating_sub(KEPT) / 60;
        self.rows.retain(|_, row| {
            row.window.forget_before(oldest);
            row.open > 0 || !row.window.is_empty()
        });
    }

    fn read_news(&mut self) {
        let news: Vec<News> = self.feeds.iter().flat_map(|feed| feed.0.try_iter()).collect();
        for news in news {
            match news {
                News::Flow(flow) => {
                    let known = self.rows.contains_key(&flow.key) || self.rows.len() < MAX_ROWS;
                    let row = if known { flow.key.clone() } else { flow.key.others() };
                    self.summed_up += u64::from(!known && flow.key.peer != Peer::Others);
                    // Its place is taken at once: many may come in one go.
                    self.rows.entry(row.clone()).or_insert_with(|| Row::new(&flow, known));
                    self.flows.push(Tracked { flow, row, read: Moved::default() });
                }
                News::Refusal(refusal) => self.refusals.push(TrackedRefusal { refusal, read: 0 }),
                News::SummedUp => self.summed_up += 1,
            }
        }
    }

    fn read_flows(&mut self, now: u64) {
        for row in self.rows.values_mut() {
            row.open = 0;
        }
        let rows = &mut self.rows;
        self.flows.retain_mut(|tracked| {
            // Nobody else holds it: what is read now is the last that is to be read.
            let is_last = Arc::get_mut(&mut tracked.flow).is_some();
            let flow = &tracked.flow;
            let closed = flow.closed.value();
            let all = Moved {
                connections: flow.opened.value(),
                from_pod: flow.from_pod.value(),
                to_pod: flow.to_pod.value(),
            };
            let new = Moved {
                connections: all.connections - tracked.read.connections,
                from_pod: all.from_pod - tracked.read.from_pod,
                to_pod: all.to_pod - tracked.read.to_pod,
            };
            tracked.read = all;
            let row = rows.entry(tracked.row.clone()).or_insert_with(|| Row::new(flow, true));
            row.open += all.connections.saturating_sub(closed);
            if new.connections + new.from_pod + new.to_pod > 0 {
                row.window.add(now / 60, &new);
                row.last_seen = now;
                flow.last_seen.set(now);
            }
            !is_last
        });
    }

    fn read_refusals(&mut self, now: u64) {
        let refused = &mut self.refused;
        self.refusals.retain_mut(|tracked| {
            let is_last = Arc::get_mut(&mut tracked.refusal).is_some();
            let count = tracked.refusal.count.value();
            let new = count - std::mem::replace(&mut tracked.read, count);
            if new > 0 {
                tracked.refusal.last_seen.set(now);
                let first_seen = tracked.refusal.first_seen;
                let row = RefusedRow { count: 0, first_seen, last_seen: now };
                let row = refused.entry(tracked.refusal.key.clone()).or_insert(row);
                row.count += new;
                row.last_seen = now;
            }
            !is_last
        });
        while self.refused.len() > MAX_REFUSED {
            let oldest = self.refused.iter().min_by_key(|(_, row)| row.last_seen).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { return };
            self.refused.remove(&oldest);
        }
    }

    fn read_pods<'a>(&mut self, now: u64, pods: impl Iterator<Item = (&'a ObjectName, PodSample)>) {
        let (mut present, mut armed) = (BTreeSet::new(), BTreeSet::new());
        for (name, sample) in pods {
            present.insert(name);
            if sample.armed {
                armed.insert(name);
            }
            let pod = self.pods.entry(name.clone()).or_default();
            if pod.instance != sample.instance {
                (pod.instance, pod.read, pod.before) = (sample.instance, Counted::default(), sample.unseen_before);
            }
            let all = Counted::of(&sample);
            let new = all.since(&pod.read);
            if new != Counted::default() {
                pod.window.add(now / 60, &new);
            }
            pod.read = all;
            if sample.armed && pod.observed.back().is_none_or(|last| last.until.is_some()) {
                pod.observed.push_back(Interval { from: now, until: None });
                if pod.observed.len() > MAX_INTERVALS {
                    pod.observed.pop_front();
                }
            }
        }
        let kept_from = now.saturating_sub(KEPT);
        self.pods.retain(|name, pod| {
            if !armed.contains(name)
                && let Some(last) = pod.observed.back_mut().filter(|last| last.until.is_none())
            {
                last.until = Some(now);
            }
            pod.observed.retain(|interval| interval.until.is_none_or(|until| until >= kept_from));
            pod.window.forget_before(kept_from / 60);
            present.contains(name) || !pod.window.is_empty() || !pod.observed.is_empty()
        });
    }

    /// The report of the last `period` seconds, [`KEPT`] at most. `pods` are those of this node and how they stand. Sample
    /// before.
    pub fn report(&self, now: u64, period: u64, node: &str, version: &str, pods: &[(ObjectName, PodState)]) -> Audit {
        let minute = now.saturating_sub(period.min(KEPT)) / 60;
        let mut flows: Vec<PlaintextFlow> = self.rows.iter().filter_map(|(key, row)| row.report(key, minute)).collect();
        flows.sort_by_key(|flow| {
            let bytes = flow.from_pod_bytes + flow.to_pod_bytes;
            (std::cmp::Reverse(bytes), flow.pod.clone(), flow.direction, flow.peer.clone(), flow.port, flow.reason)
        });
        let mut shares = Shares::default();
        for flow in &flows {
            let bytes = flow.from_pod_bytes + flow.to_pod_bytes;
            shares.plaintext.add(Volume { connections: flow.connections, bytes });
        }
        let mut unobserved = Vec::new();
        for (name, pod) in &self.pods {
            let counted = pod.window.sum_from(minute);
            shares.mutual.add(counted.mutual);
            shares.local.add(counted.local);
            for (counts, before_start) in [(counted.unseen, false), (pod.before, true)] {
                let seen = UNSEEN.iter().zip(counts).filter(|(_, connections)| *connections > 0);
                unobserved.extend(seen.map(|((direction, reason), connections)| Unobserved {
                    direction: *direction,
                    pod: name.clone(),
                    reason: *reason,
                    connections,
                    before_start,
                }));
            }
        }
        Audit {
            node: node.to_owned(),
            version: version.to_owned(),
            generated: now,
            since: minute * 60,
            agent_started: self.started,
            shares,
            flows,
            summed_up: self.summed_up,
            unobserved,
            coverage: self.coverage(pods),
            refused: self.refused(),
        }
    }

    /// Pods of the node, and those that were within the last hour.
    fn coverage(&self, pods: &[(ObjectName, PodState)]) -> Vec<Coverage> {
        let observed = |name: &ObjectName| -> Vec<Interval> {
            self.pods.get(name).map(|pod| pod.observed.iter().copied().collect()).unwrap_or_default()
        };
        let gone = self.pods.keys().filter(|name| !pods.iter().any(|(pod, _)| pod == *name));
        let mut coverage: Vec<Coverage> = pods
            .iter()
            .cloned()
            .chain(gone.map(|name| (name.clone(), PodState::Off)))
            .map(|(pod, state)| Coverage { observed: observed(&pod), pod, state })
            .collect();
        coverage.sort_by(|a, b| a.pod.cmp(&b.pod));
        coverage
    }

    fn refused(&self) -> Vec<Refused> {
        let identity = |identity: &Option<Arc<Identity>>| identity.as_deref().cloned();
        let mut refused: Vec<Refused> = self
            .refused
            .iter()
            .map(|(key, row)| Refused {
                direction: key.direction,
                pod: key.pod.clone(),
                source_identity: identity(&key.source_identity),
                source_address: key.source_address,
                destination: key.destination.clone(),
                destination_identity: identity(&key.destination_identity),
                port: key.port,
                reason: key.reason,
                decided_by: key.decided_by.as_deref().map(str::to_owned),
                count: row.count,
                first_seen: row.first_seen,
                last_seen: row.last_seen,
            })
            .collect();
        refused
            .sort_by(|a, b| b.last_seen.cmp(&a.last_seen).then_with(|| b.count.cmp(&a.count)).then(a.pod.cmp(&b.pod)));
        refused
    }
}

impl Row {
    fn new(flow: &Flow, is_alone: bool) -> Self {
        Self {
            pod_identity: flow.pod_identity.clone(),
            peer_identity: flow.peer_identity.clone().filter(|_| is_alone),
            window: Window::default(),
            open: 0,
            first_seen: flow.first_seen,
            last_seen: flow.first_seen,
        }
    }

    /// `None` where there was nothing in the period and nothing is open.
    fn report(&self, key: &FlowKey, minute: u64) -> Option<PlaintextFlow> {
        let moved = self.window.sum_from(minute);
        let is_of_interest = self.open + moved.connections + moved.from_pod + moved.to_pod > 0;
        is_of_interest.then(|| PlaintextFlow {
            direction: key.direction,
            pod: key.pod.clone(),
            pod_identity: self.pod_identity.as_deref().cloned(),
            peer: key.peer.clone(),
            peer_identity: self.peer_identity.as_deref().cloned(),
            port: key.port,
            reason: key.reason,
            connections: moved.connections,
            open: self.open,
            from_pod_bytes: moved.from_pod,
            to_pod_bytes: moved.to_pod,
            first_seen: self.first_seen,
            last_seen: self.last_seen,
        })
    }
}
