//! The decisions of the programs. Pure: facts in, verdict out; the programs look facts up and carry verdicts out.

use mesh_common::{
    Address, Approval, Decision, Endpoint, FLOW_UPSTREAM, Flow, OUTBOUND_PORT, Reach, WAY_DIRECT, WAY_SERVICE,
    WORKER_LAG_NS, WORKER_STALE_NS, WORKLOAD_STRICT, Worker, Workload, is_loopback, is_unspecified, is_v4_mapped,
    outbound_loopback, v4_mapped,
};

const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

/// Ports from [`OUTBOUND_PORT`] on that redirected IPv6 connections are spread over.
pub const SPREAD: u32 = 256;

/// Whether the protocol is ours: TCP, and MPTCP, which speaks TCP on the wire.
#[inline(always)]
pub const fn is_tcp(protocol: u32) -> bool {
    protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP
}

/// Whether a connect stays within the pod by its address alone. Linux takes the unspecified address for loopback.
#[inline(always)]
pub const fn stays_in_pod(destination: &Address) -> bool {
    is_loopback(destination) || is_unspecified(destination)
}

/// What becomes of a connect that is not direct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// Leave it alone: excluded.
    PassExcluded,
    /// Leave it alone: no agent answers, and the workload is permissive.
    PassUnavailable,
    /// Leave it alone: the socket cannot be redirected, and the workload is permissive.
    PassUnredirectable,
    /// Rewrite it to the agent.
    Redirect,
    /// Refuse it: no agent answers, and the workload is strict.
    RefuseUnavailable,
    /// Refuse it: the socket cannot be redirected, and the workload is strict.
    RefuseUnredirectable,
}

/// Decides about a connect that no cached decision lets go direct.
#[inline(always)]
pub const fn outbound(flags: u32, excluded: bool, redirectable: bool, available: bool) -> Outbound {
    let strict = flags & WORKLOAD_STRICT != 0;
    match (excluded, redirectable, available, strict) {
        (true, ..) => Outbound::PassExcluded,
        (_, false, _, true) => Outbound::RefuseUnredirectable,
        (_, false, _, false) => Outbound::PassUnredirectable,
        (_, _, false, true) => Outbound::RefuseUnavailable,
        (_, _, false, false) => Outbound::PassUnavailable,
        _ => Outbound::Redirect,
    }
}

/// What becomes of a connect of a pod that is enrolled and not armed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unarmed {
    /// Leave it alone: the workload is permissive.
    Pass,
    /// Refuse it: the workload is strict.
    Refuse,
}

/// Decides about it.
#[inline(always)]
pub const fn unarmed(flags: u32) -> Unarmed {
    if flags & WORKLOAD_STRICT != 0 { Unarmed::Refuse } else { Unarmed::Pass }
}

/// What becomes of a SYN from outside the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// To the app: it comes from the node itself.
    PassNode,
    /// To the app: excluded.
    PassExcluded,
    /// To the app: approved as direct.
    PassDirect,
    /// To the app: the agent's own connection, decided upon when its downstream was accepted.
    PassRelayed,
    /// To the app: no agent answers, and the workload is permissive.
    PassUnavailable,
    /// To the agent.
    Redirect,
    /// Refuse it: no agent answers, and the workload is strict.
    RefuseUnavailable,
}

/// Decides about a SYN; `approved` is the kind of its current approval, if any.
#[inline(always)]
pub const fn inbound(flags: u32, from_node: bool, excluded: bool, approved: Option<u32>, available: bool) -> Inbound {
    if from_node {
        return Inbound::PassNode;
    }
    if excluded {
        return Inbound::PassExcluded;
    }
    match approved {
        Some(FLOW_UPSTREAM) => return Inbound::PassRelayed,
        Some(_) => return Inbound::PassDirect,
        None => {}
    }
    match (available, flags & WORKLOAD_STRICT != 0) {
        (true, _) => Inbound::Redirect,
        (false, true) => Inbound::RefuseUnavailable,
        (false, false) => Inbound::PassUnavailable,
    }
}

/// Where a socket of `workload` that asked for `destination` is rewritten to; `None` where the pod has no address of
/// that family.
///
/// IPv4 goes to a loopback address that names the slot: TIME_WAIT ends early there, and ports do not run out. An IPv6
/// socket may be IPv6-only and then cannot reach 127.0.0.0/8, and `::1` names no pod: it goes to the pod's own address,
/// spread over ports.
#[inline(always)]
pub const fn redirect_target(workload: &Workload, destination: &Address, random: u32) -> Option<Endpoint> {
    if is_v4_mapped(destination) {
        let address = v4_mapped(outbound_loopback(workload.slot, random));
        return Some(Endpoint { address, port: OUTBOUND_PORT as u32 });
    }
    if is_unspecified(&workload.address6) {
        return None;
    }
    Some(Endpoint { address: workload.address6, port: OUTBOUND_PORT as u32 + random % SPREAD })
}

/// Whether a local port can be that of a redirected connection.
#[inline(always)]
pub const fn is_outbound_port(port: u32) -> bool {
    port >= OUTBOUND_PORT as u32 && port < OUTBOUND_PORT as u32 + SPREAD
}

/// Whether a cached decision still holds.
#[inline(always)]
pub const fn is_current(decision: &Decision, source_generation: u32, generation: u32) -> bool {
    (decision.way == WAY_DIRECT || decision.way == WAY_SERVICE)
        && decision.source_generation == source_generation
        && decision.generation == generation
}

/// Draws one of `count` backends, uniformly (multiply-shift; the bias is below count / 2^32).
#[inline(always)]
pub const fn draw(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

/// Whether an approval still holds, given the current generations of source and destination. The agent's own
/// connections were decided upon by itself and hold until their deadline.
#[inline(always)]
pub const fn is_approved(approval: &Approval, now_ns: u64, generations: [u32; 2]) -> bool {
    now_ns < approval.deadline_ns
        && (approval.kind == FLOW_UPSTREAM
            || approval.generations[0] == generations[0] && approval.generations[1] == generations[1])
}

/// What is known of whether a destination answers; state 0 is nothing.
#[inline(always)]
pub const fn reach(known: Option<Reach>, now_ns: u64) -> Reach {
    match known {
        Some(reach) if now_ns < reach.until_ns => reach,
        _ => Reach { until_ns: 0, state: 0, errno: 0 },
    }
}

/// How long Linux tries to connect with that many SYN retries, in milliseconds: 1 s, doubling.
#[inline(always)]
pub const fn syn_patience_ms(retries: i32) -> i32 {
    if retries < 1 {
        1000
    } else if retries > 6 {
        127_000
    } else {
        ((2 << retries) - 1) * 1000
    }
}

/// Whether a worker is alive.
#[inline(always)]
pub const fn is_alive(worker: &Worker, now_ns: u64) -> bool {
    worker.beat_ns != 0 && now_ns.wrapping_sub(worker.beat_ns) < WORKER_STALE_NS
}

/// Whether a worker is alive and keeps up.
#[inline(always)]
pub const fn keeps_up(worker: &Worker, now_ns: u64) -> bool {
    is_alive(worker, now_ns) && worker.lag_ns < WORKER_LAG_NS
}

/// Whether a flow speaks of this peer: a socket that was disconnected and connected elsewhere keeps an old flow.
#[inline(always)]
pub const fn speaks_of(flow: &Flow, address: &Address, port: u32) -> bool {
    flow.actual.port == port && same(&flow.actual.address, address)
}

/// Equality of addresses.
#[inline(always)]
pub const fn same(a: &Address, b: &Address) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

#[cfg(test)]
mod tests;
