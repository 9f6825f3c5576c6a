//! Who the workloads of this node are, proved: their certificates, and whom they trust. The only user of rcgen beside the
//! certificate authority.

mod authority;

pub use authority::{CertificateAuthority, Fetching, Refusal, Svid, TrustBundle};
