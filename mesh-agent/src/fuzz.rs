//! Everything that takes bytes from others, each as a function of one argument that must come back whatever the bytes are.
//!
//! Compiled for fuzzers (`cargo xtask fuzz`, docs/TESTING.md) and for tests, which replay the inputs that are kept in
//! `fuzz/seeds` and `fuzz/regressions`. The functions live beside what they try, so that nothing is made public for them.

pub use crate::{
    ca::fuzz::{csr, grpc},
    discovery::fuzz::manifests,
    node::fuzz::cgroups,
    proxy::fuzz::{hbone_headers, hbone_server, tls_handshake, tls_records},
};

#[cfg(test)]
mod tests;
