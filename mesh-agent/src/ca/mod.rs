//! Certificate authorities: the one that comes with the agent, in process ([`Embedded`]) or served to other nodes, and
//! the clients of others. docs/IDENTITY.md says which to choose.

mod authority;
mod certificate;
pub mod cluster;
mod connect;
pub mod csr;
mod embedded;
mod error;
mod folder;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
pub mod grpc;
mod istio;
mod material;
mod pem;
mod roots;
pub mod server;
mod spire;
#[cfg(test)]
mod tests;
mod verify;
pub mod wire;

pub use authority::{Authority, Issued};
pub use certificate::{SKEW, Validity};
pub use connect::{Choice, Config, connect};
pub use embedded::Embedded;
pub use error::Error;
pub use folder::FILES;
pub use istio::{Istio, IstioConfig, Resolve, Resolving};
pub use roots::Lifetimes;
pub use spire::Spire;
