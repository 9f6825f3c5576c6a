//! The project's verbs: `cargo xtask VERB`, or `./xtask/run VERB` on a machine that lacks the tools.

mod bench;
mod ci;
mod command;
mod demo;
mod dist;
mod ebpf;
mod fuzz;
mod image;
mod lab;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show the mesh at work between two pods on this machine
    Demo(demo::Args),
    /// Run the test tiers: unit, direct, netns, kernel
    Test(test::Args),
    /// Measure against no mesh and other proxies
    Bench(bench::Args),
    /// Look for inputs that do harm, with libFuzzer
    Fuzz(fuzz::Args),
    /// Check the rules that no compiler checks: module edges, sizes, documents
    Tidy,
    /// Build the eBPF object and print its path and programs
    Ebpf(ebpf::Args),
    /// Build the release binary with the eBPF object inside, into target/dist
    Dist,
    /// Write the container image as a file that docker, containerd and kind load
    Image(image::Args),
    /// Everything that must hold before a merge
    Ci,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Tidy => tidy::run(),
        Verb::Ebpf(args) => ebpf::run_verb(&args),
        Verb::Dist => dist::run_verb(),
        Verb::Image(args) => image::run_verb(&args),
        Verb::Ci => ci::run_verb(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
