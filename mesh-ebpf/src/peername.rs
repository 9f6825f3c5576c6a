//! getpeername and getsockname: the app sees the peer it asked for, the client that called it, and its own address.

use core::ptr::read_volatile;

use aya_ebpf::{EbpfContext, cty::c_void, helpers::bpf_get_netns_cookie, programs::SockAddrContext};
use mesh_common::{
    Address, Endpoint, FLOW_ACCEPTED, FLOW_DIRECT, FLOW_REDIRECTED, Flow, Tuple, is_loopback, is_unspecified,
    is_v4_mapped, v4_mapped,
};
use mesh_ebpf::decide;

use crate::maps::{FLOWS, HANDOVERS, WORKLOADS, words};

const IPPROTO_MPTCP: u32 = 262;

/// getpeername4, and accept() of an IPv4 socket.
#[inline(always)]
pub(crate) fn getpeername4(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the kernel's context.
    let actual = unsafe { v4_mapped((*ctx.sock_addr).user_ip4) };
    if let Some(shown) = peer(ctx, actual)
        && is_v4_mapped(&shown.address)
    {
        // SAFETY: as above. Volatile, because the verifier refuses merged stores.
        unsafe {
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip4, shown.address[3]);
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, u32::from((shown.port as u16).to_be()));
        }
    }
    1
}

/// getpeername6, and accept() of an IPv6 socket.
#[inline(always)]
pub(crate) fn getpeername6(ctx: &SockAddrContext) -> i32 {
    if let Some(shown) = peer(ctx, address6(ctx)) {
        write6(ctx, &shown.address);
        // SAFETY: the kernel's context.
        unsafe {
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, u32::from((shown.port as u16).to_be()));
        }
    }
    1
}

/// getsockname4: a redirected socket sits on loopback; it shows the pod's address instead.
#[inline(always)]
pub(crate) fn getsockname4(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the kernel's context.
    let actual = unsafe { v4_mapped((*ctx.sock_addr).user_ip4) };
    if let Some(shown) = own(ctx, &actual) {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip4, shown[3]) };
    }
    1
}

/// getsockname6: as getsockname4, for a v4-mapped connection.
#[inline(always)]
pub(crate) fn getsockname6(ctx: &SockAddrContext) -> i32 {
    let actual = address6(ctx);
    if is_v4_mapped(&actual)
        && let Some(shown) = own(ctx, &actual)
    {
        write6(ctx, &shown);
    }
    1
}

#[inline(always)]
fn peer(ctx: &SockAddrContext, actual: Address) -> Option<Endpoint> {
    // SAFETY: the kernel's context.
    let port = unsafe { u32::from(u16::from_be((*ctx.sock_addr).user_port as u16)) };
    let Some(flow) = flow(ctx) else { return peer_of_mptcp(ctx, actual, port) };
    let ours = flow.kind == FLOW_REDIRECTED || flow.kind == FLOW_DIRECT || flow.kind == FLOW_ACCEPTED;
    (ours && decide::speaks_of(flow, &actual, port)).then_some(flow.original)
}

/// An MPTCP socket's flow is on its subflow; what that handed over is found by the 4-tuple, which both have.
#[inline(always)]
fn peer_of_mptcp(ctx: &SockAddrContext, actual: Address, port: u32) -> Option<Endpoint> {
    // SAFETY: the kernel's context; sock_addr programs always have a socket.
    unsafe {
        if (*ctx.sock_addr).protocol != IPPROTO_MPTCP || !decide::is_outbound_port(port) {
            return None;
        }
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        // Both families are read before one is chosen, as in `established.rs`.
        let (source4, source6) = (v4_mapped(read_volatile(&raw const (*sk).src_ip4)), words(&raw const (*sk).src_ip6));
        let source = if is_v4_mapped(&actual) { source4 } else { source6 };
        let source_port = (*sk).src_port as u16;
        let tuple = Tuple { source, destination: actual, source_port, destination_port: port as u16 };
        HANDOVERS.get_ptr(&tuple).and_then(|f| f.as_ref()).map(|flow| flow.original)
    }
}

#[inline(always)]
fn own(ctx: &SockAddrContext, actual: &Address) -> Option<Address> {
    let flow = flow(ctx)?;
    if flow.kind != FLOW_REDIRECTED || !is_loopback(actual) {
        return None;
    }
    // SAFETY: the helper takes the context; the value is copied at once.
    let workload = unsafe { WORKLOADS.get_ptr(&bpf_get_netns_cookie(ctx.as_ptr()))?.as_ref()? };
    let address = workload.address4;
    (!is_unspecified(&address)).then_some(address)
}

#[inline(always)]
fn flow(ctx: &SockAddrContext) -> Option<&mut Flow> {
    // SAFETY: sock_addr programs always have a socket.
    unsafe {
        let sk: *mut c_void = (*ctx.sock_addr).__bindgen_anon_1.sk.cast();
        FLOWS.get(sk)
    }
}

#[inline(always)]
fn address6(ctx: &SockAddrContext) -> Address {
    // SAFETY: the kernel's context; word by word, as the verifier wants it.
    unsafe {
        let sa = ctx.sock_addr;
        [(*sa).user_ip6[0], (*sa).user_ip6[1], (*sa).user_ip6[2], (*sa).user_ip6[3]]
    }
}

#[inline(always)]
fn write6(ctx: &SockAddrContext, address: &Address) {
    let sa = ctx.sock_addr;
    // SAFETY: the kernel's context. Volatile, because the verifier refuses merged stores.
    unsafe {
        core::ptr::write_volatile(&raw mut (*sa).user_ip6[0], address[0]);
        core::ptr::write_volatile(&raw mut (*sa).user_ip6[1], address[1]);
        core::ptr::write_volatile(&raw mut (*sa).user_ip6[2], address[2]);
        core::ptr::write_volatile(&raw mut (*sa).user_ip6[3], address[3]);
    }
}
