//! Renders the chart without Helm: the plain manifests.

use std::io::Write;

use anyhow::Result;
use clap::Parser;
use mesh_tests::chart;

/// Renders the chart, and writes docs/deploy/mesh-agent.yaml unless values are set
#[derive(Parser)]
struct Args {
    /// A value of the chart, KEY=VALUE; the manifests then go to standard output
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The namespace that it is for
    #[arg(long, default_value = "mesh-system")]
    namespace: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut values = chart::plain_values();
    for setting in &args.set {
        chart::set(&mut values, setting)?;
    }
    let text = chart::manifests(&args.namespace, &values)?;
    if args.set.is_empty() && args.namespace == "mesh-system" {
        std::fs::write(chart::plain_path(), text)?;
    } else {
        std::io::stdout().write_all(text.as_bytes())?;
    }
    Ok(())
}
