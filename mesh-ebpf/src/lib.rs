//! The half of the programs that does not need a kernel: what is decided, as pure functions, tested on the host.
#![cfg_attr(not(test), no_std)]

pub mod decide;
