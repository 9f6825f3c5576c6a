//! `cargo xtask demo`.

use anyhow::{Result, bail};

/// Options of the demo.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the demo.
pub(crate) fn run(_args: &Args) -> Result<()> {
    bail!("not written yet")
}
