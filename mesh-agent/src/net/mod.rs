//! Sockets: where they are made, how they are connected, how bytes move between them.

pub mod connect;
pub mod listen;
pub mod netns;
pub mod sock_diag;
pub mod splice;
pub mod tcp_counters;
