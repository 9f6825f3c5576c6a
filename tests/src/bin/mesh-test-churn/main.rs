//! Changes endpoints at an API server: at a steady rate, to see what that costs, and one at a time, to see when a pod's next
//! connection goes where the change says. A program of its own, so that its CPU time is not the API server's.
#![allow(clippy::disallowed_methods, reason = "a program that changes things at a pace; nothing is tested by waiting")]

mod change;
mod client;
mod flip;
mod tally;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Changes endpoints at an API server
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Change EndpointSlices at a steady rate, until it is ended: a line of JSON each second
    Steady(change::Args),
    /// Move the only endpoint of a service to and fro between two pods, and connect until the other one answers
    Flip(flip::Args),
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-test-churn: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Steady(args) => runtime.block_on(change::run(args)),
        Command::Flip(args) => runtime.block_on(flip::run(args)),
    }
}
