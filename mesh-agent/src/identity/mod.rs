//! Who the workloads of this node are, proved: their certificates, and whom they trust. The only user of rcgen beside the
//! certificate authority.
//!
//! | file | |
//! |---|---|
//! | `authority.rs` | the seam to whoever vouches |
//! | `store.rs` | [`Identities`]: what is held, and the answers to the workers |
//! | `run.rs`, `rotate.rs` | fetching and rotating; when, purely |
//! | `held.rs`, `leaf.rs` | what is demanded of a certificate of our own; what a certificate says |
//! | `verify.rs`, `known.rs` | whom we trust; chains that need not be verified again |
//! | `config.rs`, `tickets.rs`, `sessions.rs` | TLS configurations, and resumption on both sides |
//! | `failure.rs` | why a handshake failed |

mod authority;
mod config;
mod failure;
mod held;
mod known;
mod leaf;
mod rotate;
mod run;
mod sessions;
mod store;
#[cfg(test)]
mod tests;
mod tickets;
mod verify;

pub use authority::{CertificateAuthority, Fetching, Refusal, Svid, TrustBundle};
pub use config::{Settings, provider};
pub use failure::handshake_reason;
pub use leaf::NotAnSvid;
pub use rotate::{retry_after, rotate_at};
pub use store::Identities;
