//! The eBPF programs of mesh-agent: one entry per hook, nothing else. The hooks' bodies are in the modules, what they
//! decide is in the library half, which is tested on the host.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod count;
#[cfg(target_arch = "bpf")]
mod established;
#[cfg(target_arch = "bpf")]
mod inbound;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod peername;
#[cfg(target_arch = "bpf")]
mod worker;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        macros::{cgroup_sock_addr, sk_lookup, sock_ops},
        programs::{SkLookupContext, SockAddrContext, SockOpsContext},
    };

    use crate::{connect, established, inbound, peername};

    #[cgroup_sock_addr(connect4)]
    pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
        connect::connect4(&ctx)
    }

    #[cgroup_sock_addr(connect6)]
    pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
        connect::connect6(&ctx)
    }

    #[cgroup_sock_addr(getpeername4)]
    pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
        peername::getpeername4(&ctx)
    }

    #[cgroup_sock_addr(getpeername6)]
    pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
        peername::getpeername6(&ctx)
    }

    #[cgroup_sock_addr(getsockname4)]
    pub(crate) fn getsockname4(ctx: SockAddrContext) -> i32 {
        peername::getsockname4(&ctx)
    }

    #[cgroup_sock_addr(getsockname6)]
    pub(crate) fn getsockname6(ctx: SockAddrContext) -> i32 {
        peername::getsockname6(&ctx)
    }

    #[sock_ops]
    pub(crate) fn established(ctx: SockOpsContext) -> u32 {
        established::sock_ops(&ctx)
    }

    #[sk_lookup]
    pub(crate) fn inbound(ctx: SkLookupContext) -> u32 {
        inbound::sk_lookup(&ctx)
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        // The verifier refuses a program that could get here.
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
