//! The load tool of `cargo xtask bench` and `cargo xtask demo`, client and server in one: a single thread around epoll,
//! so that what it costs is small, constant and its own. A client prints one line of JSON.

mod dialogue;
mod drive;
mod hold;
mod raw;
mod report;
mod serve;

use std::{
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;

use dialogue::Kind;

#[derive(Parser)]
#[command(name = "mesh-load", about = "Loads a network path and serves as its other end", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Serve: echo, sink, a small HTTP service, a service that speaks first
    Serve(serve::Ports),
    /// HTTP requests over kept connections, or one connection per request
    Http {
        #[command(flatten)]
        load: Load,
        /// A new connection for every request
        #[arg(long)]
        close: bool,
    },
    /// Conversations with a service that speaks first, one connection each
    Greet {
        #[command(flatten)]
        load: Load,
    },
    /// Open connections, one HTTP request each, and keep them until standard input closes; then one more request each
    Hold {
        /// The server
        address: SocketAddr,
        /// How many
        #[arg(long, default_value_t = 1000)]
        connections: usize,
    },
    /// One message there and back at a time, on one connection
    PingPong {
        /// The server
        address: SocketAddr,
        /// Bytes of a message
        #[arg(long, default_value_t = 1)]
        size: usize,
        #[command(flatten)]
        window: Window,
    },
    /// One stream to a sink, which acknowledges the byte count at the end
    Upload {
        /// The server
        address: SocketAddr,
        #[command(flatten)]
        window: Window,
    },
}

/// How long to measure.
#[derive(Args, Clone, Copy)]
struct Window {
    /// Seconds to measure; without it, until standard input closes
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,
    /// Seconds of load before that
    #[arg(long, value_parser = seconds, default_value = "0.5")]
    warm: Duration,
}

/// The load of the modes that have several connections.
#[derive(Args)]
struct Load {
    /// The server
    address: SocketAddr,
    /// Connections, or conversations at the same time
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Requests a second, timed from when each was due; without it, as fast as answers come
    #[arg(long)]
    rate: Option<f64>,
    #[command(flatten)]
    window: Window,
}

/// A buffer for bulk data. What the allocator returns for one this large is 16 bytes off a page, and copies out of the
/// kernel to there are measurably slower.
#[repr(align(4096))]
struct PageAligned<const SIZE: usize>([u8; SIZE]);

impl<const SIZE: usize> PageAligned<SIZE> {
    fn boxed() -> Box<Self> {
        Box::new(Self([0; SIZE]))
    }
}

fn seconds(text: &str) -> Result<Duration> {
    Duration::try_from_secs_f64(text.parse()?).context("not a length of time")
}

fn main() -> ExitCode {
    match run(Cli::parse().role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(role: Role) -> Result<()> {
    lift_descriptor_limit();
    match role {
        Role::Serve(ports) => serve::run(&ports),
        Role::Http { load, close } => {
            let kind = if close { Kind::HttpClose } else { Kind::HttpKeep };
            print_line(&drive::run(&plan(&load, kind))?)
        }
        Role::Greet { load } => print_line(&drive::run(&plan(&load, Kind::Greeter))?),
        Role::Hold { address, connections } => hold::run(address, connections),
        Role::PingPong { address, size, window } => print_line(&raw::ping_pong(address, size, window)?),
        Role::Upload { address, window } => print_line(&raw::upload(address, window)?),
    }
}

fn plan(load: &Load, kind: Kind) -> drive::Plan {
    drive::Plan { address: load.address, kind, connections: load.connections, rate: load.rate, window: load.window }
}

/// One line of JSON on standard output, at once.
fn print_line(value: &impl Serialize) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    out.write_all(b"\n")?;
    out.flush().context("standard output")
}

/// As many descriptors as we may have: tens of thousands of connections are a usual load.
fn lift_descriptor_limit() {
    const WANTED: u64 = 262_144;
    // Raising the hard limit takes root, and lifting the soft one to it does not.
    if setrlimit(Resource::RLIMIT_NOFILE, WANTED, WANTED).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        eprintln!("mesh-load: descriptor limit unchanged: {error}");
    }
}
