//! `mesh-agent policy`: what is allowed, what goes in plaintext, who can prove who it is.

mod audit;
mod certificates;
mod explain;
mod html;
mod offline;
mod words;

#[cfg(test)]
mod tests;

use std::io::{self, Write};

use anyhow::Context;
use clap::Subcommand;

use super::{NO_AGENT, print, status::silence};
use crate::admin::client;

const EXAMPLES: &str = "\
Examples:
  mesh-agent policy explain shop/cart-0 shop/payments 8080    would it be allowed, encrypted, direct?
  mesh-agent policy audit                                     what crossed this node's edge in plaintext?
  mesh-agent policy audit -o html --output audit.html         the same as a page to keep
  mesh-agent policy certificates                              who can prove who it is, and until when?";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell what would become of a connection: allowed by which object, encrypted or not, direct or relayed.
    Explain(explain::Args),
    /// Report what crossed this node's edge in plaintext within the last hour, and what nobody could see.
    Audit(audit::Args),
    /// Show the certificates of this node's workloads.
    Certificates(certificates::Args),
}

/// What to print, where, and how to end.
#[derive(Debug, Default)]
struct Report {
    out: String,
    err: String,
    code: u8,
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let report = runtime.block_on(async {
        match &args.command {
            Command::Explain(args) => explain::report(args).await,
            Command::Audit(args) => audit::report(args).await,
            Command::Certificates(args) => certificates::report(args).await,
        }
    })?;
    let _closed = io::stderr().write_all(report.err.as_bytes());
    print(&report.out)?;
    Ok(report.code)
}

/// There is no answer.
fn no_answer(error: &client::Error, run_dir: &std::path::Path) -> Report {
    Report { err: silence(error, run_dir), code: NO_AGENT, ..Report::default() }
}
