//! May this peer do this? Pure.

use crate::model::{Mode, Reason, Workload};

/// Whether a same-node connection of an enrolled workload may reach `destination`. The kernel vouches for the source.
pub fn authorize(_source: &Workload, _destination: &Workload) -> Result<(), Reason> {
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
