//! sk_lookup on a pod's network namespace: where a SYN goes.

use core::ptr::read_volatile;

use aya_ebpf::{
    bindings::BPF_SK_LOOKUP_F_NO_REUSEPORT, helpers::bpf_ktime_get_ns, maps::lpm_trie::Key, programs::SkLookupContext,
};
use mesh_common::{
    CIDR_PREFIX, CidrKey, FLOW_REDIRECTED, INBOUND, Inbound, LIMBO, OUTBOUND, PortKey, REACH_OPEN, REACH_REFUSED,
    TUNNEL_PORT, Tuple, WORKLOAD_ARMED, WORKLOAD_EXCLUDES_INBOUND_CIDRS, WORKLOAD_EXCLUDES_INBOUND_PORTS, is_loopback,
    listener_index, v4_mapped,
};
use mesh_ebpf::decide::{self, Inbound as Verdict};

use crate::{
    count::count,
    maps::{
        ADDRESSES, APPROVED, EXCLUDED_CIDRS, EXCLUDED_PORTS, HANDOVERS, LISTENERS, NODE_ADDRESSES, generation, reach,
        words,
    },
    worker::{self, Carries},
};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const AF_INET: u32 = 2;

/// The path of an inbound connection, in order.
#[inline(always)]
pub(crate) fn sk_lookup(ctx: &SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // SAFETY: the kernel's context. MPTCP is TCP here.
    if unsafe { (*lookup).protocol } != 6 {
        return SK_PASS;
    }
    let tuple = tuple(ctx);
    if is_loopback(&tuple.source) || decide::same(&tuple.source, &tuple.destination) {
        return from_the_pod(ctx, &tuple);
    }
    // SAFETY: values are replaced whole.
    let Some(workload) = (unsafe { ADDRESSES.get_ptr(&tuple.destination).and_then(|w| w.as_ref()) }) else {
        return SK_PASS;
    };
    let workload = *workload;
    if workload.flags & WORKLOAD_ARMED == 0 {
        return SK_PASS;
    }
    let slot = workload.slot;
    count(slot, |c| c.in_seen += 1);
    let from_node = NODE_ADDRESSES.get_ptr(&tuple.source).is_some();
    let excluded = !from_node && is_excluded(&workload, &tuple);
    let approved = if from_node || excluded { None } else { approved(&tuple) };
    let carries = if tuple.destination_port == TUNNEL_PORT { Carries::Tunnels } else { Carries::One };
    let worker = if from_node || excluded || approved.is_some() { None } else { worker::pick(carries) };
    match decide::inbound(workload.flags, from_node, excluded, approved, worker.is_some()) {
        Verdict::PassNode => count(slot, |c| c.in_node += 1),
        Verdict::PassExcluded => count(slot, |c| c.in_excluded += 1),
        Verdict::PassDirect => count(slot, |c| c.in_direct += 1),
        Verdict::PassRelayed => count(slot, |c| c.in_relayed += 1),
        Verdict::Redirect if steer(ctx, slot, INBOUND, worker) => count(slot, |c| c.in_redirected += 1),
        // A worker beats and does not listen here: the agent has just died.
        Verdict::Redirect => return without_agent(&workload),
        Verdict::PassUnavailable | Verdict::RefuseUnavailable => return without_agent(&workload),
    }
    SK_PASS
}

#[inline(always)]
fn without_agent(workload: &Inbound) -> u32 {
    if decide::inbound(workload.flags, false, false, None, false) == Verdict::RefuseUnavailable {
        count(workload.slot, |c| c.in_refused_unavailable += 1);
        return SK_DROP;
    }
    count(workload.slot, |c| c.in_passed_unavailable += 1);
    SK_PASS
}

/// What comes over the pod's loopback is either a connection that the connect hook rewrote, or the pod's own business:
/// its own calls to itself, and the agent's to its apps.
#[inline(always)]
fn from_the_pod(ctx: &SkLookupContext, tuple: &Tuple) -> u32 {
    if !decide::is_outbound_port(u32::from(tuple.destination_port)) {
        return SK_PASS;
    }
    // SAFETY: read at once; an entry is reused only after 65,536 younger ones.
    let (slot, held, original) = match unsafe { HANDOVERS.get_ptr(tuple).and_then(|f| f.as_ref()) } {
        Some(flow) if flow.kind == FLOW_REDIRECTED => (flow.slot, flow.held, flow.original),
        _ => return SK_PASS,
    };
    let worker = worker::pick(Carries::One);
    if held != 0 {
        match reach(slot, &original).state {
            REACH_OPEN => {}
            REACH_REFUSED => return SK_DROP,
            // Nobody will find out: the agent is stuck.
            _ if worker.is_none() => return SK_DROP,
            // Silence: the client tries again.
            _ => return if steer(ctx, slot, LIMBO, Some(0)) { SK_PASS } else { SK_DROP },
        }
    }
    if steer(ctx, slot, OUTBOUND, worker) { SK_PASS } else { SK_DROP }
}

#[inline(always)]
fn steer(ctx: &SkLookupContext, slot: u32, direction: u32, worker: Option<u32>) -> bool {
    let Some(worker) = worker else { return false };
    LISTENERS
        .redirect_sk_lookup(ctx, listener_index(slot, direction, worker), u64::from(BPF_SK_LOOKUP_F_NO_REUSEPORT))
        .is_ok()
}

#[inline(always)]
fn approved(tuple: &Tuple) -> Option<u32> {
    // SAFETY: copied at once; an entry is reused only after 65,536 younger ones, and then is of another tuple's
    // connection that was approved as well.
    let approval = unsafe { *APPROVED.get_ptr(tuple).and_then(|a| a.as_ref())? };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let [source, destination] = approval.generation_slots;
    decide::is_approved(&approval, now, [generation(source), generation(destination)]).then_some(approval.kind)
}

#[inline(always)]
fn is_excluded(workload: &Inbound, tuple: &Tuple) -> bool {
    if workload.flags & WORKLOAD_EXCLUDES_INBOUND_PORTS != 0 {
        let key = PortKey { slot: workload.slot, direction: INBOUND as u16, port: tuple.destination_port };
        if EXCLUDED_PORTS.get_ptr(&key).is_some() {
            return true;
        }
    }
    if workload.flags & WORKLOAD_EXCLUDES_INBOUND_CIDRS != 0 {
        let key = CidrKey { slot: workload.slot, direction: INBOUND, address: tuple.source };
        return EXCLUDED_CIDRS.get(Key::new(CIDR_PREFIX + 128, key)).is_some();
    }
    false
}

/// The SYN's 4-tuple. sk_lookup has local_port in host and remote_port in network order. Both families are read before
/// one is chosen, as in `established.rs`.
#[inline(always)]
fn tuple(ctx: &SkLookupContext) -> Tuple {
    let lookup = ctx.lookup;
    // SAFETY: the kernel's context; the fields of the other family read as zero.
    let (source4, destination4, source6, destination6, source_port, destination_port, family) = unsafe {
        (
            v4_mapped(read_volatile(&raw const (*lookup).remote_ip4)),
            v4_mapped(read_volatile(&raw const (*lookup).local_ip4)),
            words(&raw const (*lookup).remote_ip6),
            words(&raw const (*lookup).local_ip6),
            u16::from_be(read_volatile(&raw const (*lookup).remote_port)),
            read_volatile(&raw const (*lookup).local_port) as u16,
            read_volatile(&raw const (*lookup).family),
        )
    };
    let (source, destination) = if family == AF_INET { (source4, destination4) } else { (source6, destination6) };
    Tuple { source, destination, source_port, destination_port }
}
