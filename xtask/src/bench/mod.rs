//! `cargo xtask bench`: the same load over the same path without a mesh, through ours and through others, interleaved
//! (A B C A B C), so that a noisy machine hurts all alike.

mod apps;
mod configs;
mod measure;
mod memory;
pub(crate) mod report;
mod rig;
mod suites;
mod topology;
mod wire;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::lab::{
    self, Workspace,
    accounts::{Accounts, Role},
    cluster,
    interrupt::{self, Interrupted},
    load, poll,
};
use configs::Config;
use report::Report;
use rig::Rig;
use suites::{Figures, Selection};
use topology::Topology;

/// Options of the benchmark.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure: direct, mesh-direct, mesh-relay, mesh-off, mesh-mtls-cross,
    /// mesh-mtls-500-cross, mesh-mtls-rotating-cross (500 more identities, and renewed every 5 s), envoy-http-mtls, envoy-tcp-mtls,
    /// envoy-tcp-mtls-cross, haproxy-http, mesh-{direct,relay}-{large,unwatched,churn} (in a large cluster: at rest, with
    /// changes that agents don't watch, with changes of endpoints), direct-cross, or the name of a hook
    #[arg(long, value_delimiter = ',', default_value = "direct,mesh-direct,mesh-relay,mesh-off")]
    configs: Vec<String>,
    /// How often
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Suites (c1, c16, c64, r2000, conn, bulk, pp, hold; in a large cluster quiet, flip) or metrics (http.c64.rps, idle.rss_kb, ...) [default: all]
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Write one JSON object per line: {config, metric, unit, n, median, min, max, ratio}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Folder of further meshes: executables called with up, down, pids or target
    #[arg(long, value_name = "DIR")]
    hooks: Vec<PathBuf>,
    /// Run everything on one CPU: path length without wake-ups of other CPUs, the steadiest latency
    #[arg(long, value_name = "CPU")]
    pin: Option<u32>,
    /// Idle connections that suite hold keeps open
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    hold: u64,
    /// Pods on the node of the mesh, 18 of the default idle: idle.rss_kb is with all of them
    #[arg(long, value_name = "N", default_value_t = 20)]
    pods: usize,
    /// Pods of the large cluster; it has a tenth as many services and nodes
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    cluster_pods: usize,
    /// Changes of endpoints a second in it
    #[arg(long, value_name = "RATE", default_value_t = 200.0)]
    changes: f64,
    /// How often suite flip moves the endpoint of a service
    #[arg(long, value_name = "N", default_value_t = 300)]
    flips: u32,
    /// CPUs that may be busy with other work before a measurement is repeated
    #[arg(long, value_name = "CPUS", default_value_t = 0.25)]
    noise: f64,
    /// Most measurements in search of a quiet one
    #[arg(long, value_name = "N", default_value_t = 4)]
    tries: u32,
    /// Measure this mesh-agent instead of building it
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
}

/// Runs the benchmark: progress on standard error, the table on standard output.
///
/// # Errors
/// An option is wrong, something is missing (the message has the remedy), or a configuration failed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let configs = args.configs.iter().map(|name| Config::parse(name, &args.hooks)).collect::<Result<Vec<_>>>()?;
    let only = Selection::parse(&args.only)?;
    let rig = prepare(args, &configs)?;
    let mut report =
        Report::new(configs.iter().map(|config| (config.name().to_owned(), config.baseline().to_owned())).collect());
    let outcome = rounds(args, &rig, &configs, &only, &mut report);
    // What was measured before ctrl-C or a failure is still worth seeing.
    if !report.is_empty() {
        print!("{}", report.markdown());
        if let Some(path) = &args.json {
            report.write_json(path)?;
        }
    }
    outcome
}

fn prepare(args: &Args, configs: &[Config]) -> Result<Rig> {
    let length = Duration::try_from_secs_f64(args.seconds).context("--seconds")?;
    if !(2..=topology::MAX_PODS).contains(&args.pods) {
        bail!("--pods must be between 2 and {}", topology::MAX_PODS);
    }
    let mut needed = Vec::new();
    if args.agent.is_none() && configs.iter().any(Config::is_mesh) {
        needed.push(lab::AGENT);
    }
    if configs.iter().any(Config::is_large) {
        needed.extend([cluster::API_SERVER, cluster::CHURN]);
    }
    lab::require_root("bench")?;
    configs.iter().try_for_each(Config::require)?;
    let binaries = lab::build(&needed)?;
    interrupt::watch()?;
    let workspace = Workspace::create("bench")?;
    Ok(Rig {
        accounts: Accounts::create("mesh-bench")?,
        tool: binaries.join("mesh-load"),
        agent: args.agent.clone().unwrap_or_else(|| binaries.join("mesh-agent")),
        hold: holdable(args.hold)?,
        pin: args.pin,
        length,
        noise: args.noise,
        tries: args.tries,
        pods: args.pods,
        crowd: args.cluster_pods,
        changes: args.changes,
        flips: args.flips,
        binaries,
        workspace,
    })
}

/// A proxy needs two descriptors for each connection. What the machine allows is lifted as far as it goes, for us and
/// all we start.
fn holdable(wanted: u64) -> Result<u64> {
    const REST: u64 = 1000;
    let needed = 2 * wanted + REST;
    if setrlimit(Resource::RLIMIT_NOFILE, needed, needed).is_err() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let possible = hard.saturating_sub(REST) / 2;
        if possible < wanted {
            eprintln!("holding {possible} connections instead of {wanted}: a process may have {hard} descriptors here");
            return Ok(possible);
        }
    }
    Ok(wanted)
}

fn rounds(args: &Args, rig: &Rig, configs: &[Config], only: &Selection, report: &mut Report) -> Result<()> {
    let mut failures = Vec::new();
    for round in 1..=args.rounds {
        for config in configs {
            let start = Instant::now();
            let name = config.name();
            match measure_config(rig, config, only) {
                Ok(figures) => {
                    eprintln!("round {round}/{} {name}: {:.0?} {}", args.rounds, start.elapsed(), headline(&figures));
                    report.add(name, figures);
                }
                Err(error) if error.is::<Interrupted>() => return Err(error),
                Err(error) => {
                    eprintln!("round {round}/{} {name}: failed: {error:#}", args.rounds);
                    failures.push(name);
                }
            }
        }
    }
    failures.dedup();
    if failures.is_empty() { Ok(()) } else { bail!("failed: {}", failures.join(", ")) }
}

fn headline(figures: &Figures) -> String {
    const SHOWN: [&str; 8] = [
        "http.c1.p50",
        "http.c64.rps",
        "http.c64.proxy_us_req",
        "conn.cps",
        "bulk.gbit",
        "pp1.p50",
        "hold.kb_conn",
        "flip.p99",
    ];
    let shown = figures.0.iter().filter(|(metric, _)| SHOWN.contains(&metric.as_str()));
    let words: Vec<_> = shown.map(|(metric, value)| format!("{metric} {value:.1}")).collect();
    words.join(", ")
}

/// Everything is made anew for each measurement of a configuration: no state is left over from another.
fn measure_config(rig: &Rig, config: &Config, only: &Selection) -> Result<Figures> {
    let topology = Topology::create(if config.is_mesh() { rig.pods } else { 2 })?;
    let _apps = apps::start(rig, &topology)?;
    let running = config.start(rig, &topology)?;
    let client = topology.netns("a");
    await_path(rig, &client, running.target()).map_err(|error| match running.last_words() {
        Some(words) if !error.is::<Interrupted>() => error.context(words),
        _ => error,
    })?;
    // What was started settles: caches, allocators, idle threads.
    lab::rest(Duration::from_secs(1))?;
    if let Some(wire) = config.wire() {
        wire::verify(rig, &topology, running.target(), wire)?;
    }
    let mut figures = suites::run(rig, only, &client, running.target(), &|| running.pids())?;
    running.figures(rig, &topology, only, &mut figures)?;
    running.verify()?;
    // What was so before the load is so after it.
    if let Some(wire) = config.wire() {
        wire::verify(rig, &topology, running.target(), wire)?;
    }
    Ok(figures)
}

/// Until all three ports answer through the whole path.
fn await_path(rig: &Rig, netns: &str, target: std::net::Ipv4Addr) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let launch = rig.launch(netns, Role::Client);
    let answers = |mode: &str, port: u16, rest: &[&str]| {
        let address = format!("{target}:{port}");
        let words = [mode, &address, "--seconds", "0.02"];
        let args: Vec<_> = words.iter().chain(rest).map(ToString::to_string).collect();
        move |launch: &lab::process::Launch<'_>, tool: &Path| load::measure(launch, tool, &args, Duration::from_secs(5))
    };
    for (what, client) in [
        ("HTTP", answers("http", apps::HTTP, &["--warm", "0"])),
        ("echo", answers("ping-pong", apps::ECHO, &["--warm", "0"])),
        ("sink", answers("upload", apps::SINK, &[])),
    ] {
        let mut last = String::new();
        poll(&format!("an answer from {what}"), PATIENCE, || match client(&launch, &rig.tool) {
            Ok(answer) if answer.errors == 0 && answer.total > 0 => Ok(Some(())),
            Ok(answer) => {
                last = answer.first_error.unwrap_or_default();
                Ok(None)
            }
            Err(error) => {
                last = format!("{error:#}");
                interrupt::check().map(|()| None)
            }
        })
        .with_context(|| last)?;
    }
    Ok(())
}
