//! sock_ops: what a connection carries reaches the other socket, and direct connections are accounted for.

use core::ptr::read_volatile;

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TIMEOUT_INIT, bpf_sock_ops,
    },
    cty::c_void,
    helpers::{bpf_get_netns_cookie, bpf_get_smp_processor_id, bpf_getsockopt, bpf_ktime_get_ns, bpf_setsockopt},
    programs::SockOpsContext,
};
use mesh_common::{
    APPROVAL_ESTABLISHED_NS, APPROVAL_PENDING_NS, Approval, Attempt, Endpoint, FLOW_ACCEPTED, FLOW_DIRECT,
    FLOW_INBOUND, FLOW_LISTENER_INBOUND, FLOW_LISTENER_OUTBOUND, FLOW_OUTBOUND, FLOW_REDIRECTED, FLOW_UPSTREAM, Flow,
    Tuple, v4_mapped,
};
use mesh_ebpf::decide;

use crate::{
    count::count,
    maps::{APPROVED, ATTEMPTS, FLOWS, HANDOVERS, WORKLOADS, words},
};

const AF_INET: u32 = 2;
const TCP_CLOSE: u32 = 7;
const IPPROTO_TCP: i32 = 6;
const TCP_SYNCNT: i32 = 7;
const TCP_USER_TIMEOUT: i32 = 18;
/// [`Flow::held`] of a socket whose TCP_USER_TIMEOUT is the app's own, and of one on which we set it.
const HELD: u32 = 1;
const HELD_WITH_PATIENCE: u32 = 2;
/// The most that TCP_SYNCNT takes.
const MOST_SYN_RETRIES: i32 = 127;

/// Dispatches on the operation; the frequent ones of other sockets end at once.
#[inline(always)]
pub(crate) fn sock_ops(ctx: &SockOpsContext) -> u32 {
    let ops = ctx.ops;
    // SAFETY: the kernel's context.
    let (op, sk) = unsafe { ((*ops).op, (*ops).__bindgen_anon_2.sk.cast::<c_void>()) };
    if sk.is_null() {
        return 1;
    }
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => on_connect(ctx, sk),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => on_connected(ctx, sk),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => on_accepted(ctx, sk),
        BPF_SOCK_OPS_STATE_CB => on_state(ctx, sk),
        BPF_SOCK_OPS_TIMEOUT_INIT => on_timeout_init(ctx, sk),
        _ => {}
    }
    1
}

/// Before the SYN leaves: the source port is known, the peer has not heard of us.
#[inline(always)]
fn on_connect(ctx: &SockOpsContext, sk: *mut c_void) {
    // SAFETY: the context's socket, not null.
    let Some(stored) = (unsafe { FLOWS.get(sk) }) else { return };
    let flow = *stored;
    let (local, remote) = ends(ctx.ops);
    if !decide::speaks_of(&flow, &remote.address, remote.port) {
        return;
    }
    let tuple = tuple(&local, &remote);
    match flow.kind {
        FLOW_REDIRECTED => {
            let _ = HANDOVERS.insert(&tuple, &flow, 0);
            if flow.held != 0 {
                stored.held = hold(ctx, &flow, &tuple);
            }
        }
        FLOW_UPSTREAM if flow.original.port != 0 => {
            let _ = HANDOVERS.insert(&tuple, &flow, 0);
        }
        FLOW_UPSTREAM | FLOW_DIRECT => {
            let approval = Approval {
                deadline_ns: now() + APPROVAL_PENDING_NS,
                kind: flow.kind,
                reserved: 0,
                generation_slots: flow.generation_slots,
                generations: flow.generations,
            };
            let _ = APPROVED.insert(&tuple, &approval, 0);
        }
        _ => {}
    }
}

/// Nobody knows whether the destination answers: the app's connect must not succeed before that is found out. Its SYN
/// will be met with silence, repeated soon and often, for as long as Linux would have tried.
#[inline(always)]
fn hold(ctx: &SockOpsContext, flow: &Flow, tuple: &Tuple) -> u32 {
    count(flow.slot, |c| c.out_held += 1);
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let attempt = Attempt { tuple: *tuple, slot: flow.slot, cpu, original: flow.original, chosen: flow.chosen };
    // A full ring means that hundreds wait already: the SYN is repeated and answered or refused with theirs.
    let _ = ATTEMPTS.output::<Attempt>(attempt, 0);
    let patience = decide::syn_patience_ms(option(ctx, TCP_SYNCNT));
    let own = option(ctx, TCP_USER_TIMEOUT) != 0;
    if !own {
        set_option(ctx, TCP_USER_TIMEOUT, patience);
    }
    set_option(ctx, TCP_SYNCNT, MOST_SYN_RETRIES);
    if own { HELD } else { HELD_WITH_PATIENCE }
}

/// How soon a held connection's SYN is repeated: after one tick, then doubling.
#[inline(always)]
fn on_timeout_init(ctx: &SockOpsContext, sk: *mut c_void) {
    // SAFETY: the context's socket, not null.
    let Some(flow) = (unsafe { FLOWS.get(sk) }) else { return };
    if flow.kind == FLOW_REDIRECTED && flow.held != 0 {
        ctx.set_reply(1);
    }
}

#[inline(always)]
fn option(ctx: &SockOpsContext, name: i32) -> i32 {
    let mut value = 0_i32;
    // SAFETY: the kernel writes four bytes to `value`.
    unsafe { bpf_getsockopt(ctx.as_ptr(), IPPROTO_TCP, name, (&raw mut value).cast(), 4) };
    value
}

#[inline(always)]
fn set_option(ctx: &SockOpsContext, name: i32, mut value: i32) {
    // SAFETY: the kernel reads four bytes of `value`.
    unsafe { bpf_setsockopt(ctx.as_ptr(), IPPROTO_TCP, name, (&raw mut value).cast(), 4) };
}

/// The client's side of a handshake is done: its approval has served.
#[inline(always)]
fn on_connected(ctx: &SockOpsContext, sk: *mut c_void) {
    // SAFETY: the context's socket, not null.
    let Some(flow) = (unsafe { FLOWS.get(sk) }) else { return };
    if flow.kind == FLOW_REDIRECTED && flow.held != 0 {
        // The patience was for the handshake only.
        if flow.held == HELD_WITH_PATIENCE {
            set_option(ctx, TCP_USER_TIMEOUT, 0);
        }
        return;
    }
    if flow.kind != FLOW_DIRECT && flow.kind != FLOW_UPSTREAM {
        return;
    }
    let (kind, slot) = (flow.kind, flow.slot);
    let (local, remote) = ends(ctx.ops);
    if !decide::speaks_of(flow, &remote.address, remote.port) {
        return;
    }
    if let Some(approval) = APPROVED.get_ptr_mut(&tuple(&local, &remote)) {
        // SAFETY: a word of a live entry; a reused one would at worst end early, and its connection be relayed.
        unsafe { (*approval).deadline_ns = now() + APPROVAL_ESTABLISHED_NS };
    }
    if kind == FLOW_DIRECT && ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_ok() {
        count(slot, |c| c.direct_opened += 1);
    }
}

/// The server's side of a handshake is done, before accept() returns it.
#[inline(always)]
fn on_accepted(ctx: &SockOpsContext, sk: *mut c_void) {
    // SAFETY: the context's socket, not null.
    if let Some(flow) = unsafe { FLOWS.get(sk) } {
        match flow.kind {
            FLOW_LISTENER_OUTBOUND => take_over(ctx, flow),
            FLOW_LISTENER_INBOUND => {
                flow.kind = FLOW_INBOUND;
                count(flow.slot, |c| c.in_established += 1);
            }
            _ => {}
        }
        return;
    }
    // An app's socket: only in an enrolled namespace can it be the agent's peer.
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if WORKLOADS.get_ptr(&cookie).is_none() {
        return;
    }
    let (local, remote) = ends(ctx.ops);
    let key = tuple(&remote, &local);
    // SAFETY: copied at once; an entry is reused only after 65,536 younger ones.
    let Some(sent) = (unsafe { HANDOVERS.get_ptr(&key).and_then(|f| f.as_ref()) }) else { return };
    if sent.kind == FLOW_UPSTREAM {
        let flow = Flow { kind: FLOW_ACCEPTED, original: sent.original, actual: remote, ..Flow::default() };
        // SAFETY: as above. Without memory the app sees the agent's loopback address.
        unsafe { FLOWS.set(sk, flow) };
        let _ = HANDOVERS.remove(&key);
    }
}

/// The agent's accepted end learns what the app asked for.
#[inline(always)]
fn take_over(ctx: &SockOpsContext, flow: &mut Flow) {
    let (local, remote) = ends(ctx.ops);
    let key = tuple(&remote, &local);
    // SAFETY: as in on_accepted.
    match unsafe { HANDOVERS.get_ptr(&key).and_then(|f| f.as_ref()) } {
        Some(sent) if sent.kind == FLOW_REDIRECTED && sent.slot == flow.slot => {
            flow.original = sent.original;
            flow.chosen = sent.chosen;
            flow.held = sent.held;
            flow.kind = FLOW_OUTBOUND;
            // An MPTCP socket has no flow of its own: getpeername looks here.
            if sent.subflow == 0 {
                let _ = HANDOVERS.remove(&key);
            }
            count(flow.slot, |c| c.out_established += 1);
        }
        _ => count(flow.slot, |c| c.out_orphaned += 1),
    }
}

/// A direct connection ends.
#[inline(always)]
fn on_state(ctx: &SockOpsContext, sk: *mut c_void) {
    if ctx.arg(1) != TCP_CLOSE {
        return;
    }
    // SAFETY: the context's socket, not null.
    let Some(flow) = (unsafe { FLOWS.get(sk) }) else { return };
    if flow.kind != FLOW_DIRECT {
        return;
    }
    flow.kind = mesh_common::FLOW_NONE;
    // SAFETY: the kernel's context.
    let (acked, received) = unsafe { ((*ctx.ops).bytes_acked, (*ctx.ops).bytes_received) };
    // SYN and FIN count as a byte each, in the one direction both, in the other the FIN.
    let (acked, received) = (acked.saturating_sub(2), received.saturating_sub(1));
    count(flow.slot, |c| {
        c.direct_closed += 1;
        c.direct_sent_bytes += acked;
        c.direct_received_bytes += received;
    });
}

/// Both ends of the socket, v4-mapped where IPv4. sock_ops has local_port in host and remote_port in network order.
///
/// Both families are read, volatile, before one is chosen: LLVM would merge the loads of two branches into one at a
/// computed offset, which the verifier refuses.
#[inline(always)]
fn ends(ops: *mut bpf_sock_ops) -> (Endpoint, Endpoint) {
    // SAFETY: the kernel's context; the fields of the other family read as zero or as nothing of use.
    let (local4, remote4, local6, remote6, local_port, remote_port, family) = unsafe {
        (
            v4_mapped(read_volatile(&raw const (*ops).local_ip4)),
            v4_mapped(read_volatile(&raw const (*ops).remote_ip4)),
            words(&raw const (*ops).local_ip6),
            words(&raw const (*ops).remote_ip6),
            read_volatile(&raw const (*ops).local_port),
            u32::from_be(read_volatile(&raw const (*ops).remote_port)) & 0xffff,
            read_volatile(&raw const (*ops).family),
        )
    };
    let (local, remote) = if family == AF_INET { (local4, remote4) } else { (local6, remote6) };
    (Endpoint { address: local, port: local_port }, Endpoint { address: remote, port: remote_port })
}

#[inline(always)]
const fn tuple(source: &Endpoint, destination: &Endpoint) -> Tuple {
    Tuple {
        source: source.address,
        destination: destination.address,
        source_port: source.port as u16,
        destination_port: destination.port as u16,
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}
