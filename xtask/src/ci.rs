//! `cargo xtask ci`: everything that must hold before a merge, in the order of what fails fastest.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    command::{cargo, command, run, show},
    ebpf::MESH_EBPF,
    test::MESH_REQUIRE,
};

/// Tiers that CI's machines can run, so that none is skipped there unseen.
const REQUIRED: &str = "netns,kernel";

/// Runs all steps, up to the first that fails, and prints how long each took.
pub(crate) fn run_verb() -> Result<()> {
    let mut timings = Vec::new();
    let started = Instant::now();
    let outcome = steps().into_iter().try_for_each(|(name, mut command)| {
        println!("\n>>> {name}: {}", show(&command));
        let begun = Instant::now();
        let outcome = run(&mut command);
        timings.push((name, begun.elapsed(), outcome.is_ok()));
        outcome.with_context(|| format!("step {name}"))
    });
    println!();
    for (name, time, passed) in &timings {
        print_timing(name, *time, if *passed { "passed" } else { "FAILED" });
    }
    print_timing("all", started.elapsed(), if outcome.is_ok() { "passed" } else { "FAILED" });
    outcome
}

fn print_timing(name: &str, time: Duration, verdict: &str) {
    println!("{name:<10} {:>7.1} s  {verdict}", time.as_secs_f64());
}

fn steps() -> Vec<(&'static str, Command)> {
    // One way to get the object in all steps, or the agent would be compiled once for each way.
    let cargo = |words: &str| {
        let mut command = cargo(&words.split(' ').collect::<Vec<_>>());
        command.env(MESH_EBPF, "build");
        command
    };
    let mut doc = cargo("doc --workspace --no-deps --lib --locked");
    doc.env("RUSTDOCFLAGS", "-Dwarnings");
    let mut test = command("./xtask/run", &["test"]);
    test.env(MESH_REQUIRE, REQUIRED);
    vec![
        ("fmt", cargo("fmt --all --check")),
        ("tidy", cargo("xtask tidy")),
        // Without advisories: deny.toml says why.
        ("deny", cargo("deny check bans licenses sources")),
        ("clippy", cargo("clippy --workspace --exclude mesh-ebpf --all-targets --locked -- -Dwarnings")),
        // The programs themselves compile for the bpf target only, whose compiler need not have clippy.
        ("programs", cargo("xtask ebpf --deny-warnings")),
        ("decide", cargo("clippy -p mesh-ebpf --lib --tests --locked -- -Dwarnings")),
        ("doc", doc),
        ("test", test),
        ("vm", command("./xtask/run", &["test", "kernel", "--vm", "--filter", "smoke"])),
    ]
}
