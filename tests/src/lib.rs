//! Harness of the tiers that need sockets, namespaces or the kernel: nodes and pods made of network namespaces, the real
//! agent on them, apps and clients in them.
#![deny(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a harness that cannot go on fails the test, and says where"
)]

pub mod agent;
pub mod api;
pub mod app;
pub mod ca;
pub mod capture;
pub mod chart;
pub mod cluster;
pub mod intruder;
pub mod kubelet;
pub mod manifest;
pub mod mesh;
pub mod node;
pub mod packet;
pub mod permissions;
pub mod pki;
pub mod require;
pub mod rollout;
pub mod sandbox;
pub mod socket;
pub mod spine;
pub mod sys;
pub mod twin;
pub mod wait;

pub use agent::Agent;
pub use app::{App, Seen};
pub use capture::Capture;
pub use cluster::{Cluster, Cross};
pub use mesh::Pair;
pub use node::{Node, Pod};
pub use require::require;
pub use spine::Spine;
pub use twin::Twin;
pub use wait::eventually;
