//! mesh-agent.
fn main() {}
