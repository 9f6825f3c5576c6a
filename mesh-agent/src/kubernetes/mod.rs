//! The API server: how it is reached, and whatever is said to it beyond reading objects into snapshots (that is
//! `discovery`'s).

mod client;
pub mod cluster;
mod service;
pub mod writeback;

pub use client::{Access, Error, USER_AGENT, causes, why};
pub use service::{ServiceAddresses, ServicePort};
