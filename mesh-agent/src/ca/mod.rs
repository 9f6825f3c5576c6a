//! Certificate authorities: the one that comes with the agent, in process ([`Embedded`]) or served to other nodes, and
//! the clients of others. docs/IDENTITY.md says which to choose.

mod authority;
mod certificate;
pub mod csr;
mod embedded;
mod error;
mod folder;
mod pem;
mod roots;
#[cfg(test)]
mod tests;

pub use authority::{Authority, Issued};
pub use certificate::{SKEW, Validity};
pub use embedded::Embedded;
pub use error::Error;
pub use roots::Lifetimes;
