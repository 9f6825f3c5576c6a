//! The host-testable half of the programs.
#![cfg_attr(not(test), no_std)]
