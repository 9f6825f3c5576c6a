//! What crossed the node's edge unencrypted within the last hour, and who was refused.
//!
//! A worker counts in its own [`Shard`], without a lock; the control thread reads the counts every second into the
//! [`Ledger`], by minute, and makes the report. Time is an argument, in Unix seconds.

mod ledger;
mod shard;
mod window;

#[cfg(test)]
mod tests;

pub use ledger::{Ledger, PodSample, UNSEEN};
pub use shard::{Feed, Flow, FlowKey, News, Refusal, RefusalKey, Shard, shard};

/// How long things are remembered, in seconds.
pub const KEPT: u64 = 3600;
