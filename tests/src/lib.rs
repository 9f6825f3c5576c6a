//! Harness.

pub mod require;

pub use require::require;
