//! mesh-agent: one service mesh agent per node.
//!
//! Modules in layer order; an arrow not listed in docs/ARCHITECTURE.md fails `cargo xtask tidy`.
//!
//! | module | question it answers |
//! |---|---|
//! | [`model`] | what are we talking about? Plain data |
//! | [`policy`] | may this peer do this? Pure |
//! | [`route`] | where does this destination lead? Pure |
//! | [`balance`] | which endpoint? Pure |
//! | [`sys`] | the system calls that no library wraps: the only `unsafe` of this crate |
//! | [`net`] | sockets: listen, connect, namespaces, splice |
//! | [`node`] | which pods run on this node, and where is their network? |
//! | [`telemetry`] | one record per connection, sharded counters |
//! | [`datapath`] | the kernel side: load, attach, pin, maps. The only user of aya |
//! | [`discovery`] | from manifests to snapshots |
//! | [`identity`] | who are the workloads of this node, and whom do they trust? |
//! | [`ca`] | who vouches for them? The authority, and clients of others |
//! | [`proxy`] | the two spines: `outbound.rs` and `inbound.rs` |
//! | [`explain`] | would it be allowed, and how would it go? Pure |
//! | [`admin`] | the unix socket that `status` asks |
//! | [`cli`] | the commands |
//! | `fuzz` | what takes bytes from strangers, for fuzzers and tests only |
//! | [`app`] | start order, top to bottom; the only file that knows every module |
#![deny(unsafe_code)]

pub mod admin;
pub mod app;
pub mod balance;
pub mod ca;
pub mod cli;
pub mod datapath;
pub mod discovery;
pub mod explain;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
pub mod identity;
pub mod kubernetes;
pub mod model;
pub mod net;
pub mod node;
pub mod policy;
pub mod proxy;
pub mod route;
pub mod sys;
pub mod telemetry;
