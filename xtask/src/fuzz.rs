//! `cargo xtask fuzz`: inputs that find new ways through the code, from libFuzzer, on the compiler that the project has.
//!
//! The sanitizers need nightly; what guides the fuzzer, the counters of SanitizerCoverage, is a pass of LLVM that stable
//! runs as well. Debug assertions and overflow checks are on, and the agent has no unsafe code to watch.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{cargo, output, root, run as run_command},
    ebpf::MESH_EBPF,
};

/// A folder of its own below it, since all is compiled otherwise here.
const TARGET: &str = "target/fuzz";
/// `profile.fuzz` of Cargo.toml.
const PROFILE: &str = "fuzz";
/// Seconds after which an input hangs, and memory, in MiB, which no input may need.
const HANG: u32 = 20;
const MEMORY: u32 = 1024;
/// What libFuzzer is guided by: counters of edges, where they are, and what is compared with what.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

/// Options of the fuzzer.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to fuzz, by the names in fuzz/src/bin; all by default
    targets: Vec<String>,
    /// How long, for each of them
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Longest input
    #[arg(long, default_value_t = 4096, value_name = "BYTES")]
    max_length: u32,
    /// Try these inputs only, once each: to replay what was found
    #[arg(long, value_name = "FILE", conflicts_with = "seconds")]
    replay: Vec<PathBuf>,
}

/// Builds the targets and runs them one after the other.
///
/// # Errors
/// An input was found that does harm; all targets have run.
pub(crate) fn run(args: &Args) -> Result<()> {
    let known = known()?;
    if let Some(unknown) = args.targets.iter().find(|target| !known.contains(target)) {
        bail!("there is no target {unknown}; there are {}", known.join(", "));
    }
    if !args.replay.is_empty() && args.targets.len() != 1 {
        bail!("name the one target to replay with");
    }
    let targets = if args.targets.is_empty() { &known } else { &args.targets };
    let programs = build(targets)?;
    let mut rows = Vec::new();
    for target in targets {
        println!("\n=== {target}");
        let program = programs.join(target);
        let outcome = if args.replay.is_empty() {
            explore(target, &program, args)?
        } else {
            let mut command = Command::new(&program);
            command.args(limits()).args(&args.replay);
            run_command(&mut command)?;
            continue;
        };
        rows.push((target, outcome));
    }
    for (target, Outcome { summary, .. }) in &rows {
        println!("{target:<16} {summary}");
    }
    let found: Vec<_> = rows.iter().filter_map(|(target, outcome)| Some((*target, outcome.found.as_ref()?))).collect();
    for (target, input) in &found {
        println!("\n{target} fails with {input}, shown above. To replay it:");
        println!("  cargo xtask fuzz {target} --replay {input}");
        println!("When it is mended, keep it: mv {input} fuzz/regressions/{target}/NAME");
    }
    if !found.is_empty() {
        bail!("found something in {} of {} targets", found.len(), rows.len());
    }
    Ok(())
}

/// The names of the targets.
fn known() -> Result<Vec<String>> {
    let folder = root().join("fuzz/src/bin");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        names.extend(entry?.path().file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Builds the programs and returns their folder.
fn build(targets: &[String]) -> Result<PathBuf> {
    let version = output(&mut crate::command::command("rustc", &["-vV"]))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    // With --target, flags are for the programs only: not for build scripts and procedural macros.
    let mut command = cargo(&["build", "--package", "mesh-fuzz", "--locked", "--profile", PROFILE]);
    command.args(["--target", host, "--target-dir", TARGET]);
    for target in targets {
        command.args(["--bin", target]);
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")).env(MESH_EBPF, "stub");
    run_command(&mut command)?;
    Ok(root().join(TARGET).join(host).join(PROFILE))
}

/// What came of a target.
struct Outcome {
    summary: String,
    /// The input that does harm.
    found: Option<String>,
}

/// Looks for new inputs, from the seeds and from what earlier runs have found.
fn explore(target: &str, program: &Path, args: &Args) -> Result<Outcome> {
    let folders = Folders::of(target)?;
    let mut command = Command::new(program);
    command.current_dir(root());
    command.args(limits());
    command.args([
        format!("-max_total_time={}", args.seconds),
        format!("-max_len={}", args.max_length),
        format!("-artifact_prefix={}/", folders.found),
        "-print_final_stats=1".to_owned(),
    ]);
    // The first folder is where new inputs go.
    command.args([&folders.corpus, &folders.seeds, &folders.regressions]);
    let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| format!("cannot start {target}"))?;
    let mut progress = Progress::default();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            progress.line(&String::from_utf8_lossy(&line?));
        }
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(Outcome { summary: progress.summary(), found: None });
    }
    let input = progress.input.with_context(|| format!("{target} ended with {status} and says not why"))?;
    Ok(Outcome { summary: format!("FAILED: {input}"), found: Some(input) })
}

fn limits() -> [String; 2] {
    [format!("-timeout={HANG}"), format!("-rss_limit_mb={MEMORY}")]
}

/// Where inputs of a target are, seen from the repository's root.
struct Folders {
    seeds: String,
    regressions: String,
    corpus: String,
    found: String,
}

impl Folders {
    fn of(target: &str) -> Result<Self> {
        let folders = Self {
            seeds: format!("fuzz/seeds/{target}"),
            regressions: format!("fuzz/regressions/{target}"),
            corpus: format!("{TARGET}/corpus/{target}"),
            found: format!("{TARGET}/found/{target}"),
        };
        for folder in [&folders.regressions, &folders.corpus, &folders.found] {
            fs::create_dir_all(root().join(folder)).with_context(|| format!("cannot make {folder}"))?;
        }
        Ok(folders)
    }
}

/// What libFuzzer has said so far.
#[derive(Default)]
struct Progress {
    executions: Option<String>,
    coverage: Option<String>,
    input: Option<String>,
}

impl Progress {
    /// Takes in a line; shows what is worth reading.
    fn line(&mut self, line: &str) {
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.input = Some(path.trim().to_owned());
        }
        if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            self.executions = Some(count.trim().to_owned());
        }
        let is_progress = line.starts_with('#');
        if is_progress && let Some((_, rest)) = line.split_once(" cov: ") {
            self.coverage = rest.split(' ').next().map(str::to_owned);
        }
        // New inputs come by the hundred.
        let is_chatter = line.contains("\tNEW ") || line.contains("\tREDUCE") || line.starts_with("INFO:");
        if !is_chatter && !line.starts_with("stat::") {
            println!("{line}");
        }
    }

    fn summary(&self) -> String {
        let [executions, coverage] = [&self.executions, &self.coverage].map(|text| text.as_deref().unwrap_or("?"));
        format!("{executions} inputs, {coverage} edges, nothing found")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_fuzzer_says_is_understood() {
        let mut progress = Progress::default();
        for line in [
            "#2\tINITED cov: 7 ft: 7 corp: 1/1b exec/s: 0 rss: 27Mb",
            "#512\tpulse  cov: 12 ft: 30 corp: 4/13b lim: 4096 exec/s: 256 rss: 27Mb",
            "stat::number_of_executed_units: 1024",
        ] {
            progress.line(line);
        }
        assert_eq!(progress.summary(), "1024 inputs, 12 edges, nothing found");
        assert_eq!(progress.input, None);
        progress.line("artifact_prefix='x/'; Test unit written to x/crash-0123");
        assert_eq!(progress.input.as_deref(), Some("x/crash-0123"));
    }
}
