//! Names and capacities of the maps. A name here is the symbol in the object and the name of the pin.

/// Workload slots on one node; slot 0 is never given out.
pub const MAX_SLOTS: u32 = 1024;
/// Workers of one agent.
pub const MAX_WORKERS: u32 = 64;
/// Addresses of enrolled pods.
pub const MAX_ADDRESSES: u32 = 4096;
/// Addresses of the node itself.
pub const MAX_NODE_ADDRESSES: u32 = 1024;
/// Excluded ports over all workloads.
pub const MAX_EXCLUDED_PORTS: u32 = 16_384;
/// Excluded CIDRs over all workloads.
pub const MAX_EXCLUDED_CIDRS: u32 = 16_384;
/// Generation counters; addresses share one by hash, which costs a needless miss and never a wrong hit.
pub const GENERATION_SLOTS: u32 = 4096;
/// Cached decisions.
pub const MAX_DECISIONS: u32 = 16_384;
/// Cached service backends.
pub const MAX_BACKENDS: u32 = 16_384;
/// Connections between SYN and establishment whose flow is on its way to the accepted socket.
pub const MAX_HANDOVERS: u32 = 65_536;
/// Approved 4-tuples.
pub const MAX_APPROVED: u32 = 65_536;

/// Destinations of which is known whether they answer.
pub const MAX_REACH: u32 = 16_384;
/// Pods that are not armed yet.
pub const MAX_PENDING: u32 = 2048;
/// Bytes of the ring of held connections; the size of an entry times some hundreds.
pub const ATTEMPTS_BYTES: u32 = 256 * 1024;

/// Agents that were relieved by a younger one and have connections left.
pub const MAX_DRAINING: u32 = 64;

/// All map names, in the order of the table in the crate's documentation.
pub const NAMES: [&str; 19] = [
    "AGENT",
    "DRAINING",
    "WORKERS",
    "WORKLOADS",
    "PENDING",
    "ADDRESSES",
    "NODE_ADDRESSES",
    "EXCLUDED_PORTS",
    "EXCLUDED_CIDRS",
    "LISTENERS",
    "GENERATIONS",
    "DECISIONS",
    "BACKENDS",
    "FLOWS",
    "HANDOVERS",
    "APPROVED",
    "REACH",
    "ATTEMPTS",
    "COUNTERS",
];
