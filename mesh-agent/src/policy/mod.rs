//! May this peer do this? Pure.

use std::net::SocketAddr;

use crate::model::{Identity, Mode, Reason, Workload};

/// Whether a same-node connection of an enrolled workload may reach `destination`. The kernel vouches for the source.
pub fn authorize(_source: &Workload, _destination: &Workload) -> Result<(), Reason> {
    Ok(())
}

/// Whether a peer from elsewhere may reach `destination` of `workload`: `identity` is proved by its certificate, `None` in
/// plaintext; `peer` is its end of the TCP connection.
///
/// # Errors
/// Why not.
pub fn authorize_peer(
    _workload: &Workload,
    _identity: Option<&Identity>,
    _peer: SocketAddr,
    _destination: SocketAddr,
) -> Result<(), Reason> {
    Ok(())
}

/// Whether plaintext from somebody the kernel does not vouch for may reach a workload.
pub fn admit_plaintext(destination: Mode) -> Result<(), Reason> {
    match destination {
        Mode::Permissive | Mode::Disabled => Ok(()),
        Mode::Strict => Err(Reason::PlaintextRefused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_from_strangers_is_a_matter_of_mode() {
        assert_eq!(admit_plaintext(Mode::Permissive), Ok(()));
        assert_eq!(admit_plaintext(Mode::Strict), Err(Reason::PlaintextRefused));
    }
}
