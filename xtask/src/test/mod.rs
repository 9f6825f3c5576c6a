//! `cargo xtask test`: the tiers, in order, each with its count and time.

mod count;

use std::{fmt, process::Command, time::Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

pub(crate) use count::Count;

use crate::{
    command::{cargo, output, show},
    ebpf, vm,
};

/// Which tiers must not be skipped; read by the harness.
pub(crate) const MESH_REQUIRE: &str = "MESH_REQUIRE";
/// Path of the agent that the tests start.
pub(crate) const MESH_AGENT_BIN: &str = "MESH_AGENT_BIN";

/// Options of the tests.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The tiers to run; all by default
    #[arg(value_enum)]
    tiers: Vec<Tier>,
    /// Run the kernel tier (and nothing else, unless named) on Debian's kernels in QEMU
    #[arg(long)]
    vm: bool,
    /// With --vm, this kernel only
    #[arg(long, value_enum, requires = "vm")]
    kernel: Option<vm::Kernel>,
    /// Tiers that fail where they cannot run, instead of being skipped; adds to MESH_REQUIRE
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TIERS")]
    require: Vec<Tier>,
    /// Only tests with this in their names
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

/// A kind of tests, by what they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Beside the code; needs nothing
    Unit,
    /// The agent's parts in this process, with fakes for the kernel; needs nothing
    Direct,
    /// The test API server against recordings of a real one, and the client library on it; needs nothing
    Api,
    /// Real sockets in network namespaces; needs root or user namespaces
    Netns,
    /// Real eBPF programs; needs root, cgroup v2 and the eBPF toolchain
    Kernel,
    /// A real cluster of nodes, MESH_TEST_KUBECONFIG, with the image MESH_TEST_IMAGE; only where it is named
    Cluster,
}

impl Tier {
    /// All but the one that needs a cluster.
    const ALL: [Self; 5] = [Self::Unit, Self::Direct, Self::Api, Self::Netns, Self::Kernel];

    const fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Direct => "direct",
            Self::Api => "api",
            Self::Netns => "netns",
            Self::Kernel => "kernel",
            Self::Cluster => "cluster",
        }
    }
}

/// How a tier ended.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Skipped(String),
    Failed(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Skipped(why) => write!(f, "SKIPPED: {why}"),
            Self::Failed(why) => write!(f, "FAILED: {why}"),
        }
    }
}

/// A line of the table at the end.
struct Row {
    name: String,
    verdict: Verdict,
    count: Count,
    seconds: f64,
}

/// Runs the tiers, then prints the table.
///
/// # Errors
/// A tier failed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let required = required(&args.require)?;
    let tiers = match (args.tiers.as_slice(), args.vm) {
        ([], false) => &Tier::ALL,
        ([], true) => &[Tier::Kernel][..],
        (named, _) => named,
    };
    let mut rows = Vec::new();
    let with_kernel = tiers.contains(&Tier::Kernel);
    let lacking = if with_kernel { ebpf::lacking() } else { None };
    let session =
        Session { required: &required, filter: args.filter.as_deref(), build_object: with_kernel && lacking.is_none() };
    for &tier in tiers {
        if let (Tier::Kernel, Some(lacking)) = (tier, &lacking) {
            rows.push(row(tier.name().to_owned(), |_| Ok(session.cannot_run(tier, lacking))));
        } else if tier == Tier::Kernel && args.vm {
            for &kernel in args.kernel.as_ref().map_or(vm::Kernel::ALL, std::slice::from_ref) {
                rows.push(row(format!("kernel on {kernel}"), |count| session.run_vm(kernel, count)));
            }
        } else {
            rows.push(row(tier.name().to_owned(), |count| session.run_tier(tier, count)));
        }
    }
    print_table(&rows);
    if rows.iter().any(|row| matches!(row.verdict, Verdict::Failed(_))) {
        bail!("not all tests passed");
    }
    Ok(())
}

/// The tiers of `--require` and of the environment, as the harness wants them.
fn required(named: &[Tier]) -> Result<String> {
    let inherited = std::env::var(MESH_REQUIRE).unwrap_or_default();
    let mut names: Vec<&str> = inherited.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    for name in &names {
        Tier::from_str(name, false).map_err(|_| anyhow::anyhow!("{MESH_REQUIRE} names no tier: {name:?}"))?;
    }
    names.extend(named.iter().map(|tier| tier.name()));
    Ok(names.join(","))
}

fn row(name: String, work: impl FnOnce(&mut Count) -> Result<Verdict>) -> Row {
    println!("\n=== {name}");
    let started = Instant::now();
    let mut count = Count::default();
    let verdict = work(&mut count).unwrap_or_else(|error| Verdict::Failed(format!("{error:#}")));
    count.settle();
    if verdict != Verdict::Passed {
        println!("{verdict}");
    }
    Row { name, verdict, count, seconds: started.elapsed().as_secs_f64() }
}

/// What all tiers of one run share.
struct Session<'a> {
    required: &'a str,
    filter: Option<&'a str>,
    build_object: bool,
}

impl Session<'_> {
    fn run_tier(&self, tier: Tier, count: &mut Count) -> Result<Verdict> {
        let commands = match tier {
            Tier::Unit => vec![
                self.cargo_test(&["-p", "mesh-common", "-p", "mesh-agent", "-p", "xtask"]),
                // Without its binary, which only the bpf target can compile.
                self.cargo_test(&["-p", "mesh-ebpf", "--lib"]),
                self.cargo_test(&["-p", "mesh-tests", "--lib"]),
            ],
            // It says what it does, for minutes, and what is lacking.
            Tier::Cluster => {
                let agent = self.build_agent()?;
                let mut command = self.cargo(&["test", "-p", "mesh-tests", "--test", "cluster", "--", "--nocapture"]);
                command.env(MESH_REQUIRE, self.required).env(MESH_AGENT_BIN, agent);
                vec![command]
            }
            Tier::Direct | Tier::Api | Tier::Netns | Tier::Kernel => {
                let targets = test_targets(tier)?;
                if targets.is_empty() {
                    return Ok(self.cannot_run(tier, "it has no tests"));
                }
                let agent = self.build_agent()?;
                let mut arguments = vec!["-p", "mesh-tests"];
                for target in &targets {
                    arguments.extend(["--test", target]);
                }
                let mut command = self.cargo_test(&arguments);
                command.env(MESH_AGENT_BIN, agent);
                if tier == Tier::Kernel {
                    // They attach to the cgroup root, of which there is one.
                    command.env("RUST_TEST_THREADS", "1");
                }
                vec![command]
            }
        };
        let mut failed = Vec::new();
        for mut command in commands {
            if let Some(filter) = self.filter.filter(|_| tier != Tier::Cluster) {
                command.args(["--", filter]);
            }
            let shown = show(&command);
            println!("--- {shown}");
            if !count.run(&mut command)? {
                failed.push(shown);
            }
        }
        Ok(if failed.is_empty() { Verdict::Passed } else { Verdict::Failed(failed.join("; ")) })
    }

    fn run_vm(&self, kernel: vm::Kernel, count: &mut Count) -> Result<Verdict> {
        let targets = test_targets(Tier::Kernel)?;
        if targets.is_empty() {
            return Ok(self.cannot_run(Tier::Kernel, "it has no tests"));
        }
        let agent = self.build_agent()?;
        let tests = self.test_binaries(&targets)?;
        vm::run(kernel, &vm::Payload { agent: agent.as_ref(), tests: &tests, filter: self.filter }, count)?;
        Ok(Verdict::Passed)
    }

    fn cannot_run(&self, tier: Tier, why: &str) -> Verdict {
        if self.required.split(',').any(|name| name == tier.name()) {
            Verdict::Failed(format!("{MESH_REQUIRE}={}, but {why}", self.required))
        } else {
            Verdict::Skipped(why.to_owned())
        }
    }

    /// One setting for all tiers of a run, so that the agent is compiled once.
    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = cargo(arguments);
        let prebuilt = std::env::var(ebpf::MESH_EBPF).is_ok_and(|how| how.starts_with("prebuilt:"));
        if self.build_object && !prebuilt {
            command.env(ebpf::MESH_EBPF, "build");
        }
        command
    }

    fn cargo_test(&self, arguments: &[&str]) -> Command {
        let mut command = self.cargo(&["test"]);
        command.args(arguments).arg("--no-fail-fast").env(MESH_REQUIRE, self.required);
        command
    }

    /// Builds the agent and returns its path.
    fn build_agent(&self) -> Result<String> {
        let mut command = self.cargo(&["build", "-p", "mesh-agent", "--bin", "mesh-agent"]);
        let built = executables(&mut command)?.into_iter().next();
        Ok(built.context("cargo built no mesh-agent")?.1)
    }

    /// Builds the tests and returns their names and paths.
    fn test_binaries(&self, targets: &[String]) -> Result<Vec<(String, String)>> {
        let mut command = self.cargo(&["test", "--no-run", "-p", "mesh-tests"]);
        for target in targets {
            command.args(["--test", target]);
        }
        // Cargo names the package's programs as well.
        let mut found = executables(&mut command)?;
        found.retain(|(name, _)| targets.contains(name));
        Ok(found)
    }
}

/// Runs a cargo build and returns the names and paths of the executables it made.
fn executables(command: &mut Command) -> Result<Vec<(String, String)>> {
    command.arg("--message-format=json-render-diagnostics").stderr(std::process::Stdio::inherit());
    let mut found = Vec::new();
    for line in output(command)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let name = message.pointer("/target/name").and_then(|name| name.as_str());
        let path = message.get("executable").and_then(|path| path.as_str());
        if let (Some(name), Some(path)) = (name, path) {
            found.push((name.to_owned(), path.to_owned()));
        }
    }
    Ok(found)
}

/// The integration tests that belong to a tier, by their names: `direct`, `netns_relay`, `kernel_smoke`.
fn test_targets(tier: Tier) -> Result<Vec<String>> {
    let metadata: serde_json::Value =
        serde_json::from_str(&output(&mut cargo(&["metadata", "--no-deps", "--format-version=1"]))?)?;
    let packages = metadata.get("packages").and_then(|packages| packages.as_array()).context("no packages")?;
    let package = packages.iter().find(|package| package.get("name").is_some_and(|name| name == "mesh-tests"));
    let targets = package.and_then(|package| package.get("targets")?.as_array()).context("no mesh-tests")?;
    let tests = targets.iter().filter(|target| target.pointer("/kind/0").is_some_and(|kind| kind == "test"));
    let names = tests.filter_map(|target| target.get("name")?.as_str());
    Ok(names.filter(|name| name.split('_').next() == Some(tier.name())).map(str::to_owned).collect())
}

fn print_table(rows: &[Row]) {
    println!("\n{:<16} {:>7} {:>7} {:>8} {:>8}  verdict", "tier", "passed", "failed", "skipped", "seconds");
    for Row { name, verdict, count, seconds } in rows {
        let Count { passed, failed, skipped } = count;
        println!("{name:<16} {passed:>7} {failed:>7} {skipped:>8} {seconds:>8.1}  {verdict}");
    }
}
