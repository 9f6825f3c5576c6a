//! The proxy: workers, each a thread with a runtime of its own, and the two spines that a connection follows,
//! `outbound.rs` and `inbound.rs`.

mod accept;
mod attempt;
mod audited;
pub mod direct;
mod error;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz {
    //! Targets for fuzzers.
    pub use super::{
        hbone::fuzz::{hbone_headers, hbone_server},
        tls::fuzz::{tls_handshake, tls_records},
    };
}
pub mod hbone;
mod held;
mod inbound;
mod outbound;
mod patience;
mod permit;
mod pod;
mod pool;
pub mod relay;
mod seams;
mod term;
mod tls;
pub mod transport;
mod upstream;
mod worker;

pub use accept::Accepted;
pub use attempt::Attempt;
pub use error::{Error, Retry};
pub use held::Held;
pub use pod::{Pod, PodListeners};
pub use seams::{Certificates, Kernel, Original};
pub use term::Relief;
pub use worker::{Command, Config, Worker, WorkerHandle, spawn};
