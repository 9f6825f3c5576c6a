//! What the agent tells the programs.

use crate::maps::{GENERATION_SLOTS, MAX_WORKERS};

/// An address as four words in network byte order; IPv4 as `::ffff:a.b.c.d`.
pub type Address = [u32; 4];

/// Port of the pod's loopback to which captured outbound connections are rewritten.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port of the listener that inbound connections are steered to.
pub const INBOUND_PORT: u16 = 15006;
/// Port that other agents call by mutual TLS, at the pod's own address.
pub const TUNNEL_PORT: u16 = 15008;
/// How often a worker writes its [`Worker`] entry, in milliseconds.
pub const WORKER_BEAT_MS: u64 = 100;
/// A worker that has not beaten for this long, in nanoseconds, gets no new connections.
pub const WORKER_STALE_NS: u64 = 1_000_000_000;
/// A worker whose event loop ran this late, in nanoseconds, is overloaded: another one is preferred.
pub const WORKER_LAG_NS: u64 = 20_000_000;
/// How long an approved 4-tuple may wait for its handshake, in nanoseconds: all SYN retries of Linux' default (127 s).
pub const APPROVAL_PENDING_NS: u64 = 130_000_000_000;
/// How long it lives on once established, for a handshake's last ACK that comes by way of a SYN cookie.
pub const APPROVAL_ESTABLISHED_NS: u64 = 1_000_000_000;

/// The agent process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// [`crate::ABI_VERSION`] of the writer.
    pub abi: u32,
    /// Thread group id in the initial pid namespace: whose sockets are never captured.
    pub tgid: u32,
    /// Number of workers, at most [`MAX_WORKERS`].
    pub workers: u32,
    /// Idle time before keepalive probes on the agent's upstream sockets, in seconds; 0 for none.
    pub keepalive_s: u32,
    /// Number of entries of `PENDING`. While it is 0 nobody looks for any.
    pub pending: u32,
    /// Number of entries of `DRAINING`. While it is 0 nobody looks for any.
    pub draining: u32,
}

/// An agent that was relieved by a younger one and has connections left; found by its thread group id in the initial pid
/// namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Draining {
    /// When it started, in clock ticks since boot: another process may get its number later.
    pub started: u64,
    /// Its process id, as agents see it.
    pub pid: u32,
    /// Zero.
    pub reserved: u32,
}

/// How many probes are sent before a peer is given up, and into how many intervals [`Agent::keepalive_s`] is divided.
pub const KEEPALIVE_PROBES: u32 = 6;

/// A worker's sign of life.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Worker {
    /// CLOCK_MONOTONIC of the last beat, in nanoseconds.
    pub beat_ns: u64,
    /// How late the event loop ran that beat, in nanoseconds.
    pub lag_ns: u64,
}

/// Outbound connections of the workload are captured.
pub const WORKLOAD_ARMED: u32 = 1;
/// Without an agent the workload is refused, not passed.
pub const WORKLOAD_STRICT: u32 = 1 << 1;
/// The decision cache is consulted.
pub const WORKLOAD_DIRECT: u32 = 1 << 2;
/// `EXCLUDED_PORTS` holds outbound ports of the workload.
pub const WORKLOAD_EXCLUDES_OUTBOUND_PORTS: u32 = 1 << 3;
/// `EXCLUDED_CIDRS` holds outbound blocks of the workload.
pub const WORKLOAD_EXCLUDES_OUTBOUND_CIDRS: u32 = 1 << 4;
/// `EXCLUDED_PORTS` holds inbound ports of the workload.
pub const WORKLOAD_EXCLUDES_INBOUND_PORTS: u32 = 1 << 5;
/// `EXCLUDED_CIDRS` holds inbound blocks of the workload.
pub const WORKLOAD_EXCLUDES_INBOUND_CIDRS: u32 = 1 << 6;

/// An enrolled workload, found by the cookie of its network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Its slot: index of counters and listeners, never 0.
    pub slot: u32,
    /// `WORKLOAD_*`.
    pub flags: u32,
    /// Generation of the workload itself as a source; decisions of another one are void.
    pub generation: u32,
    /// Zero.
    pub reserved: u32,
    /// The pod's own IPv6 address, or zeros: what an IPv6-only socket is rewritten to.
    pub address6: Address,
    /// The pod's own IPv4 address, v4-mapped, or zeros.
    pub address4: Address,
}

/// A pod that is enrolled and not armed yet, found by the id of its cgroup, which is there before anything runs in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// The slot that it counts in, and will have when it is armed; 0 while nobody knows which workload it is.
    pub slot: u32,
    /// [`WORKLOAD_STRICT`] or 0.
    pub flags: u32,
}

/// How far below the root of the hierarchy a pod's cgroup is at most.
pub const PENDING_LEVELS: i32 = 12;

/// An address of an enrolled workload, as `sk_lookup` finds it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inbound {
    /// The workload's slot.
    pub slot: u32,
    /// `WORKLOAD_*`.
    pub flags: u32,
}

/// Direction of an exclusion or a listener: what the workload opens.
pub const OUTBOUND: u32 = 0;
/// Direction of an exclusion or a listener: what is opened to the workload.
pub const INBOUND: u32 = 1;

/// Direction of a listener that never answers, and never refuses: where the SYNs of held connections go.
pub const LIMBO: u32 = 2;
/// Directions of listeners.
pub const DIRECTIONS: u32 = 3;

/// An excluded port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortKey {
    /// The workload's slot.
    pub slot: u32,
    /// [`OUTBOUND`] or [`INBOUND`].
    pub direction: u16,
    /// The port.
    pub port: u16,
}

/// An excluded block; the trie's prefix length counts slot and direction too ([`CIDR_PREFIX`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CidrKey {
    /// The workload's slot.
    pub slot: u32,
    /// [`OUTBOUND`] or [`INBOUND`].
    pub direction: u32,
    /// First address of the block.
    pub address: Address,
}

/// Bits of [`CidrKey`] before the address.
pub const CIDR_PREFIX: u32 = 64;

/// Index in `LISTENERS`.
#[inline(always)]
pub const fn listener_index(slot: u32, direction: u32, worker: u32) -> u32 {
    (slot * DIRECTIONS + direction) * MAX_WORKERS + worker
}

/// Entries of `LISTENERS`.
pub const LISTENER_ENTRIES: u32 = crate::maps::MAX_SLOTS * DIRECTIONS * MAX_WORKERS;

/// Slot of an address in `GENERATIONS` (FNV-1a over the words).
#[inline(always)]
pub const fn generation_slot(address: &Address) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    hash = (hash ^ address[0]).wrapping_mul(0x0100_0193);
    hash = (hash ^ address[1]).wrapping_mul(0x0100_0193);
    hash = (hash ^ address[2]).wrapping_mul(0x0100_0193);
    hash = (hash ^ address[3]).wrapping_mul(0x0100_0193);
    (hash ^ (hash >> 16)) % GENERATION_SLOTS
}

/// Second word but one of a v4-mapped address.
pub const V4_MAPPED: u32 = 0xffff_u32.to_be();

/// An IPv4 address (network byte order) as [`Address`].
#[inline(always)]
pub const fn v4_mapped(address: u32) -> Address {
    [0, 0, V4_MAPPED, address]
}

/// Whether the address is v4-mapped.
#[inline(always)]
pub const fn is_v4_mapped(address: &Address) -> bool {
    address[0] == 0 && address[1] == 0 && address[2] == V4_MAPPED
}

/// Whether the address is 127.0.0.0/8 (v4-mapped) or `::1`.
#[inline(always)]
pub const fn is_loopback(address: &Address) -> bool {
    if is_v4_mapped(address) {
        u32::from_be(address[3]) >> 24 == 127
    } else {
        address[0] == 0 && address[1] == 0 && address[2] == 0 && address[3] == 1_u32.to_be()
    }
}

/// Whether the address is unspecified, in either family. Linux connects such a socket to the host itself.
#[inline(always)]
pub const fn is_unspecified(address: &Address) -> bool {
    address[0] == 0 && address[1] == 0 && (address[2] == 0 || address[2] == V4_MAPPED) && address[3] == 0
}

/// The loopback address that stands for a workload's outbound listener: 127.(slot + 256).spread.
///
/// `sk_lookup` cannot see the namespace, so the slot is in the address; the last byte spreads connections over 256
/// addresses, so that the pod's ephemeral ports are not the limit of its connections.
#[inline(always)]
pub const fn outbound_loopback(slot: u32, spread: u32) -> u32 {
    (0x7f00_0000 | (slot + 256) << 8 | (spread & 0xff)).to_be()
}
