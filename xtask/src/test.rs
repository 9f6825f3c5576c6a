//! `cargo xtask test`.

use anyhow::{Result, bail};

/// Options of the test.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the test.
pub(crate) fn run(_args: &Args) -> Result<()> {
    bail!("not written yet")
}
