//! One record per connection, and counters that nobody shares while connections are handled.

pub mod audit;
mod connection;
mod counters;
mod exposition;
pub mod metrics;
mod verdicts;

pub use crate::model::Direction;
pub use connection::{Connection, Wire, unix_now};
pub use counters::{Count, DirectionCounters, PodCounters, TransportCounters, WorkerCounters, monotonic_ns};
pub use exposition::{Exposition, Family, Format, Kind, Samples};
pub use verdicts::Verdicts;
