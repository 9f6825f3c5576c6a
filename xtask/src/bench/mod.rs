//! `cargo xtask bench`.

use anyhow::{Result, bail};

/// Options of the benchmark.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the benchmark.
pub(crate) fn run(_args: &Args) -> Result<()> {
    bail!("not written yet")
}
