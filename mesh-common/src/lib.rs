//! The ABI between mesh-agent and its eBPF programs, and nothing else.
//!
//! | map | type | key -> value | written by |
//! |---|---|---|---|
//! | `AGENT` | array, 1 entry | 0 -> [`Agent`] | agent |
//! | `DRAINING` | hash | thread group id of an agent that was relieved -> [`Draining`] | agent |
//! | `WORKERS` | array, [`maps::MAX_WORKERS`] | worker -> [`Worker`] | each worker, every [`WORKER_BEAT_MS`] ms |
//! | `WORKLOADS` | hash | network namespace cookie -> [`Workload`] | agent |
//! | `PENDING` | hash | cgroup id of a pod -> [`Pending`] | agent |
//! | `ADDRESSES` | hash | pod address -> [`Inbound`] | agent |
//! | `NODE_ADDRESSES` | hash | address of this node -> 1 | agent |
//! | `EXCLUDED_PORTS` | hash | [`PortKey`] -> 1 | agent |
//! | `EXCLUDED_CIDRS` | LPM trie | [`CidrKey`] -> 1 | agent |
//! | `LISTENERS` | sockmap | [`listener_index`] -> listening socket | agent; empties itself when the agent dies |
//! | `GENERATIONS` | array, [`maps::GENERATION_SLOTS`] | slot of an address -> current generation | agent |
//! | `DECISIONS` | LRU hash | [`DecisionKey`] -> [`Decision`] | agent's workers |
//! | `BACKENDS` | LRU hash | [`BackendKey`] -> [`Backend`] | agent's workers |
//! | `FLOWS` | socket storage | socket -> [`Flow`] | connect hooks, sock_ops, agent |
//! | `HANDOVERS` | LRU hash | [`Tuple`] -> [`Flow`] | sock_ops |
//! | `APPROVED` | LRU hash | [`Tuple`] -> [`Approval`] | sock_ops |
//! | `REACH` | LRU hash | [`DecisionKey`] -> [`Reach`] | agent's workers |
//! | `ATTEMPTS` | ring buffer | [`Attempt`] | sock_ops |
//! | `COUNTERS` | per-CPU array | workload slot -> [`Counters`] | all programs |
//!
//! Every type is `repr(C)`, of fixed width, without padding, bool, enum or Option; `layout.rs` asserts it on both sides.
//! Addresses are always IPv6, in network byte order as four words; IPv4 is written v4-mapped. Ports are in host byte order.
#![no_std]

mod config;
mod flow;
mod layout;
pub mod maps;
mod verdict;

pub use config::*;
pub use flow::*;
pub use verdict::*;

/// Version of everything in this crate. Pins of another version are never adopted.
pub const ABI_VERSION: u32 = 2;
