//! One record per connection, and counters that nobody shares while connections are handled.

mod connection;
mod counters;
mod verdicts;

pub use connection::{Connection, Direction, Wire};
pub use counters::{Count, DirectionCounters, PodCounters, WorkerCounters};
pub use verdicts::Verdicts;
