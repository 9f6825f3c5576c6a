//! `cargo xtask ci`: everything that must hold before a merge, what fails fastest first.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    command::{cargo, command, run, show},
    ebpf::MESH_EBPF,
    test::MESH_REQUIRE,
};

/// Tiers that CI's machines can run, so that none is skipped there unseen.
const REQUIRED: &str = "netns,kernel";

/// Runs the checks, all of them, then, if they hold, the tests, and prints how long each step took.
pub(crate) fn run_verb() -> Result<()> {
    let started = Instant::now();
    let mut timings = Vec::new();
    for stage in [checks(), tests()] {
        for (name, mut command) in stage {
            println!("\n>>> {name}: {}", show(&command));
            let begun = Instant::now();
            let outcome = run(&mut command);
            if let Err(error) = &outcome {
                println!("{error:#}");
            }
            timings.push((name, begun.elapsed(), outcome.is_ok()));
        }
        if timings.iter().any(|(_, _, passed)| !passed) {
            break;
        }
    }
    println!();
    for (name, time, passed) in &timings {
        print_timing(name, *time, if *passed { "passed" } else { "FAILED" });
    }
    print_timing("all", started.elapsed(), "");
    let failed: Vec<_> = timings.iter().filter(|(_, _, passed)| !passed).map(|(name, ..)| *name).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn print_timing(name: &str, time: Duration, verdict: &str) {
    println!("{name:<10} {:>7.1} s  {verdict}", time.as_secs_f64());
}

/// The project's cargo. One way to get the object in all steps, or the agent would be compiled once for each way.
fn step(words: &str) -> Command {
    let mut command = cargo(&words.split(' ').collect::<Vec<_>>());
    command.env(MESH_EBPF, "build");
    command
}

/// Steps that only read the code.
fn checks() -> Vec<(&'static str, Command)> {
    let mut doc = step("doc --workspace --no-deps --lib --locked");
    doc.env("RUSTDOCFLAGS", "-Dwarnings");
    vec![
        ("fmt", step("fmt --all --check")),
        ("tidy", step("xtask tidy")),
        // Without advisories: deny.toml says why.
        ("deny", step("deny check bans licenses sources")),
        // The programs compile for the bpf target only, whose compiler need not have clippy; their library half has.
        ("programs", step("xtask ebpf --deny-warnings")),
        ("decide", step("clippy -p mesh-ebpf --lib --tests --locked -- -Dwarnings")),
        ("clippy", step("clippy --workspace --exclude mesh-ebpf --all-targets --locked -- -Dwarnings")),
        ("doc", doc),
    ]
}

/// The command of the README, and what it leaves out.
fn tests() -> Vec<(&'static str, Command)> {
    let mut test = command("./xtask/run", &["test"]);
    test.env(MESH_REQUIRE, REQUIRED);
    vec![("test", test), ("vm", command("./xtask/run", &["test", "kernel", "--vm", "--filter", "smoke"]))]
}
