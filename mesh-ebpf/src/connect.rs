//! connect4 and connect6: where an app's connection starts.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    cty::c_void,
    helpers::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_get_prandom_u32,
        bpf_set_retval, bpf_setsockopt, bpf_skc_to_mptcp_sock,
    },
    maps::lpm_trie::Key,
    programs::SockAddrContext,
};
use aya_log_ebpf::warn;
use mesh_common::{
    Address, Agent, BackendKey, CIDR_PREFIX, CidrKey, DecisionKey, Endpoint, FLOW_DIRECT, FLOW_REDIRECTED,
    FLOW_UPSTREAM, Flow, KEEPALIVE_PROBES, OUTBOUND, PENDING_LEVELS, PortKey, REACH_OPEN, REACH_REFUSED, WAY_DIRECT,
    WAY_SERVICE, WORKLOAD_ARMED, WORKLOAD_DIRECT, WORKLOAD_EXCLUDES_OUTBOUND_CIDRS, WORKLOAD_EXCLUDES_OUTBOUND_PORTS,
    Workload, generation_slot, is_v4_mapped, listener_index, v4_mapped,
};
use mesh_ebpf::decide::{self, Outbound, Unarmed};

use crate::{
    count::count,
    maps::{
        ADDRESSES, AGENT, BACKENDS, DECISIONS, DRAINING, EXCLUDED_CIDRS, EXCLUDED_PORTS, FLOWS, PENDING, WORKLOADS,
        generation, listens, reach,
    },
    worker,
};

const PASS: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;
const ENETUNREACH: i32 = 101;
const ENOMEM: i32 = 12;
const SOL_SOCKET: i32 = 1;
const SO_KEEPALIVE: i32 = 9;
const IPPROTO_TCP: i32 = 6;
const TCP_NODELAY: i32 = 1;
const TCP_KEEPIDLE: i32 = 4;
const TCP_KEEPINTVL: i32 = 5;
const TCP_KEEPCNT: i32 = 6;

/// connect4.
#[inline(always)]
pub(crate) fn connect4(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the kernel's context.
    let ip = unsafe { (*ctx.sock_addr).user_ip4 };
    connect::<false>(ctx, v4_mapped(ip))
}

/// connect6; a v4-mapped destination is an IPv4 one.
#[inline(always)]
pub(crate) fn connect6(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the kernel's context; word by word, as the verifier wants it.
    let address = unsafe {
        let ctx = ctx.sock_addr;
        [(*ctx).user_ip6[0], (*ctx).user_ip6[1], (*ctx).user_ip6[2], (*ctx).user_ip6[3]]
    };
    connect::<true>(ctx, address)
}

/// The path of an outbound connection, in order. Whoever is not enrolled pays the first look-up.
///
/// `V6` is the family of the hook: the verifier lets connect4 touch only the IPv4 fields of the context, and the other
/// way round.
#[inline(always)]
fn connect<const V6: bool>(ctx: &SockAddrContext, destination: Address) -> i32 {
    let sa = ctx.sock_addr;
    // SAFETY: the kernel's context.
    let (protocol, port) = unsafe { ((*sa).protocol, u32::from(u16::from_be((*sa).user_port as u16))) };
    if !decide::is_tcp(protocol) {
        return PASS;
    }
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: values are replaced whole; a torn read is excluded by the kernel's copy on update.
    let Some(workload) = (unsafe { WORKLOADS.get_ptr(&cookie).and_then(|w| w.as_ref()) }) else {
        return of_unarmed(&destination);
    };
    // SAFETY: sock_addr programs always have a socket.
    let sk: *mut c_void = unsafe { (*sa).__bindgen_anon_1.sk.cast() };
    if let Some(agent) = agent_itself() {
        set_up(ctx, agent);
        return connect_of_agent(sk, &destination, port);
    }
    if workload.flags & WORKLOAD_ARMED == 0 || decide::stays_in_pod(&destination) || is_own(workload, &destination) {
        return PASS;
    }
    count(workload.slot, |c| c.out_seen += 1);

    let asked = Endpoint { address: destination, port };
    let mut chosen = Endpoint::default();
    if workload.flags & WORKLOAD_DIRECT != 0 {
        match look_up(workload, &asked) {
            Way::Direct(endpoint) => return go_direct::<V6>(ctx, sk, workload, asked, endpoint),
            Way::Relay(endpoint) => chosen = endpoint,
            Way::Unknown => {}
        }
    }

    let excluded = is_excluded(workload, &asked);
    // SAFETY: a helper without arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let target = decide::redirect_target(workload, &destination, random);
    // SAFETY: sock_addr programs always have a socket. A socket bound to a device cannot reach loopback.
    let bound = unsafe { (*(*sa).__bindgen_anon_1.sk).bound_dev_if != 0 };
    let redirectable = target.is_some() && !bound;
    let available = match worker::pick(worker::Carries::One) {
        Some(worker) => listens(listener_index(workload.slot, OUTBOUND, worker)),
        None => false,
    };
    match decide::outbound(workload.flags, excluded, redirectable, available) {
        Outbound::Redirect => {}
        Outbound::PassExcluded => {
            count(workload.slot, |c| c.out_excluded += 1);
            return PASS;
        }
        Outbound::PassUnavailable => {
            count(workload.slot, |c| c.out_passed_unavailable += 1);
            return PASS;
        }
        Outbound::PassUnredirectable => {
            count(workload.slot, |c| if bound { c.out_passed_unredirectable += 1 } else { c.out_no_address += 1 });
            return PASS;
        }
        Outbound::RefuseUnavailable => {
            count(workload.slot, |c| c.out_refused_unavailable += 1);
            return refuse(ECONNREFUSED);
        }
        Outbound::RefuseUnredirectable => {
            count(workload.slot, |c| c.out_refused_unredirectable += 1);
            return refuse(ENETUNREACH);
        }
    }
    let Some(target) = target else { return REFUSE };
    let reach = reach(workload.slot, &asked);
    if reach.state == REACH_REFUSED {
        count(workload.slot, |c| c.out_refused_upstream += 1);
        return refuse(reach.errno as i32);
    }
    let flow = Flow {
        kind: FLOW_REDIRECTED,
        slot: workload.slot,
        original: asked,
        actual: target,
        chosen,
        held: u32::from(reach.state != REACH_OPEN),
        subflow: u32::from(is_subflow(sk)),
        ..Flow::default()
    };
    // SAFETY: the socket of the context.
    if !unsafe { FLOWS.set(sk, flow) } {
        count(workload.slot, |c| c.no_memory += 1);
        warn!(ctx, "no memory for the flow of a socket: connect refused with ENOMEM");
        return refuse(ENOMEM);
    }
    rewrite::<V6>(ctx, &target);
    count(workload.slot, |c| c.out_redirected += 1);
    PASS
}

/// A connect in a namespace that is not enrolled: unless it is a pod's that is about to be armed, not our business.
#[inline(always)]
fn of_unarmed(destination: &Address) -> i32 {
    let Some(agent) = AGENT.get(0).filter(|agent| agent.pending > 0) else { return PASS };
    if decide::stays_in_pod(destination) || is_agent(agent) {
        return PASS;
    }
    for level in 1..=PENDING_LEVELS {
        // SAFETY: a helper that takes a number; the task that connects is the current one.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if cgroup == 0 {
            break;
        }
        // SAFETY: values are replaced whole.
        let Some(pending) = (unsafe { PENDING.get_ptr(&cgroup).and_then(|p| p.as_ref()) }) else { continue };
        let pending = *pending;
        return match decide::unarmed(pending.flags) {
            Unarmed::Pass => {
                count(pending.slot, |c| {
                    c.out_seen += 1;
                    c.out_passed_unarmed += 1;
                });
                PASS
            }
            Unarmed::Refuse => {
                count(pending.slot, |c| {
                    c.out_seen += 1;
                    c.out_refused_unarmed += 1;
                });
                refuse(ECONNREFUSED)
            }
        };
    }
    PASS
}

/// What the decision cache says.
enum Way {
    Direct(Endpoint),
    Relay(Endpoint),
    Unknown,
}

#[inline(always)]
fn look_up(workload: &Workload, asked: &Endpoint) -> Way {
    let key = DecisionKey { slot: workload.slot, port: asked.port, address: asked.address };
    // SAFETY: an entry of an LRU may be reused while it is read; what is used of it is checked by generation, and a
    // backend is looked up by the list's id, which is never reused.
    let Some(decision) = (unsafe { DECISIONS.get_ptr(&key).and_then(|d| d.as_ref()) }) else { return Way::Unknown };
    let decision = *decision;
    if !decide::is_current(&decision, workload.generation, generation(generation_slot(&asked.address))) {
        return Way::Unknown;
    }
    if decision.way != WAY_SERVICE {
        return Way::Direct(*asked);
    }
    // SAFETY: a helper without arguments.
    let index = decide::draw(unsafe { bpf_get_prandom_u32() }, decision.count);
    // SAFETY: as above.
    match unsafe { BACKENDS.get_ptr(&BackendKey { service: decision.service, index }).and_then(|b| b.as_ref()) } {
        Some(backend) if backend.way == WAY_DIRECT => Way::Direct(backend.endpoint),
        Some(backend) => Way::Relay(backend.endpoint),
        None => Way::Unknown,
    }
}

#[inline(always)]
fn go_direct<const V6: bool>(
    ctx: &SockAddrContext,
    sk: *mut c_void,
    workload: &Workload,
    asked: Endpoint,
    endpoint: Endpoint,
) -> i32 {
    let generation_slots = [own_generation_slot(workload, &endpoint.address), generation_slot(&endpoint.address)];
    let flow = Flow {
        kind: FLOW_DIRECT,
        slot: workload.slot,
        original: asked,
        actual: endpoint,
        generation_slots,
        generations: [generation(generation_slots[0]), generation(generation_slots[1])],
        ..Flow::default()
    };
    // SAFETY: the socket of the context.
    if !unsafe { FLOWS.set(sk, flow) } {
        count(workload.slot, |c| c.no_memory += 1);
        return refuse(ENOMEM);
    }
    if !decide::same(&asked.address, &endpoint.address) || asked.port != endpoint.port {
        rewrite::<V6>(ctx, &endpoint);
    }
    count(workload.slot, |c| c.out_direct += 1);
    PASS
}

/// Generation slot of the source: of its address in the destination's family.
#[inline(always)]
fn own_generation_slot(workload: &Workload, destination: &Address) -> u32 {
    generation_slot(if is_v4_mapped(destination) { &workload.address4 } else { &workload.address6 })
}

/// The agent's own upstream connections pass; what they reach on this node must let them in.
#[inline(always)]
fn connect_of_agent(sk: *mut c_void, destination: &Address, port: u32) -> i32 {
    // SAFETY: only whether there is an entry matters.
    if ADDRESSES.get_ptr(destination).is_none() {
        return PASS;
    }
    // SAFETY: the socket of the context.
    if let Some(flow) = unsafe { FLOWS.get(sk) } {
        // The agent itself left the downstream client's address here, to be shown to the app.
        flow.actual = Endpoint { address: *destination, port };
        return PASS;
    }
    let actual = Endpoint { address: *destination, port };
    // SAFETY: as above. Without memory the connection is steered to the agent as if it were a stranger's.
    unsafe { FLOWS.set(sk, Flow { kind: FLOW_UPSTREAM, actual, ..Flow::default() }) };
    PASS
}

/// The agent, if it is the one who connects.
#[inline(always)]
fn agent_itself() -> Option<&'static Agent> {
    AGENT.get(0).filter(|agent| is_agent(agent))
}

/// Whether the current task is the agent's, or that of one which was relieved and still has connections to see to.
#[inline(always)]
fn is_agent(agent: &Agent) -> bool {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    tgid == agent.tgid || agent.draining > 0 && DRAINING.get_ptr(&tgid).is_some()
}

/// The options of the agent's upstream sockets: five system calls less per connection than if it set them itself.
#[inline(always)]
fn set_up(ctx: &SockAddrContext, agent: &Agent) {
    set_option(ctx, IPPROTO_TCP, TCP_NODELAY, 1);
    if agent.keepalive_s > 0 {
        let interval = (agent.keepalive_s / KEEPALIVE_PROBES).max(1);
        set_option(ctx, IPPROTO_TCP, TCP_KEEPIDLE, agent.keepalive_s as i32);
        set_option(ctx, IPPROTO_TCP, TCP_KEEPINTVL, interval as i32);
        set_option(ctx, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES as i32);
        set_option(ctx, SOL_SOCKET, SO_KEEPALIVE, 1);
    }
}

#[inline(always)]
fn set_option(ctx: &SockAddrContext, level: i32, name: i32, mut value: i32) {
    // SAFETY: the kernel reads four bytes of `value`.
    unsafe { bpf_setsockopt(ctx.as_ptr(), level, name, (&raw mut value).cast(), 4) };
}

/// Whether the socket is the subflow of an MPTCP socket, which is what the hook is given in the app's socket's place.
#[inline(always)]
fn is_subflow(sk: *mut c_void) -> bool {
    // SAFETY: the socket of the context; the answer is only compared (Linux 5.19).
    unsafe { !bpf_skc_to_mptcp_sock(sk).is_null() }
}

#[inline(always)]
fn is_own(workload: &Workload, destination: &Address) -> bool {
    // SAFETY: plain words.
    ADDRESSES.get_ptr(destination).is_some_and(|inbound| unsafe { (*inbound).slot } == workload.slot)
}

#[inline(always)]
fn is_excluded(workload: &Workload, asked: &Endpoint) -> bool {
    if workload.flags & WORKLOAD_EXCLUDES_OUTBOUND_PORTS != 0 {
        let key = PortKey { slot: workload.slot, direction: OUTBOUND as u16, port: asked.port as u16 };
        if EXCLUDED_PORTS.get_ptr(&key).is_some() {
            return true;
        }
    }
    if workload.flags & WORKLOAD_EXCLUDES_OUTBOUND_CIDRS != 0 {
        let key = CidrKey { slot: workload.slot, direction: OUTBOUND, address: asked.address };
        return EXCLUDED_CIDRS.get(Key::new(CIDR_PREFIX + 128, key)).is_some();
    }
    false
}

/// Writes the destination into the context, in the family of the socket's call.
#[inline(always)]
fn rewrite<const V6: bool>(ctx: &SockAddrContext, to: &Endpoint) {
    let sa: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: the kernel's context. Volatile, because the verifier refuses merged stores.
    unsafe {
        if V6 {
            core::ptr::write_volatile(&raw mut (*sa).user_ip6[0], to.address[0]);
            core::ptr::write_volatile(&raw mut (*sa).user_ip6[1], to.address[1]);
            core::ptr::write_volatile(&raw mut (*sa).user_ip6[2], to.address[2]);
            core::ptr::write_volatile(&raw mut (*sa).user_ip6[3], to.address[3]);
        } else {
            core::ptr::write_volatile(&raw mut (*sa).user_ip4, to.address[3]);
        }
        core::ptr::write_volatile(&raw mut (*sa).user_port, u32::from((to.port as u16).to_be()));
    }
}

/// Makes connect() fail with `errno`. Where the kernel is too old for that it is EPERM.
#[inline(always)]
fn refuse(errno: i32) -> i32 {
    // SAFETY: a helper that takes a number (Linux 5.18).
    unsafe { bpf_set_retval(-errno) };
    REFUSE
}
