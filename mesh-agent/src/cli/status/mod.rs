//! `mesh-agent status`.

mod pods;
mod view;

pub(super) use view::section;

#[cfg(test)]
mod tests;

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    time::Duration,
};

use anyhow::Context;

use super::{
    FAILED, NO_AGENT, RunDir,
    cluster::{self, ClusterArgs},
    duration,
    output::{Format, text::Paint, yaml},
    print,
};
use crate::{admin::client, model::Status};

const EXAMPLES: &str = "\
Examples:
  mesh-agent status
  mesh-agent status -n shop -o wide
  mesh-agent status --watch 5
  mesh-agent status --cluster --context production
  mesh-agent status -o json | jq '.pods[] | select(.unaccounted > 0) | .name'

Exit codes: 0 healthy, 1 something is unhealthy (in any namespace), 2 no agent answers.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    run_dir: RunDir,
    /// Every node of the cluster, by its API server, instead of this node
    #[arg(long, conflicts_with = "namespace")]
    pub(super) cluster: bool,
    #[command(flatten)]
    reach: ClusterArgs,
    /// Format of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// Show again every so often, until ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = duration::parse_interval)]
    watch: Option<Duration>,
    /// Only this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// No colours, as when standard output is not a terminal or NO_COLOR is set
    #[arg(long)]
    no_color: bool,
}

/// What to print, where, and how to end.
#[derive(Debug)]
struct Report {
    out: String,
    err: String,
    code: u8,
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let paint = Paint::for_stream(&io::stdout(), args.no_color);
    runtime.block_on(async {
        let Some(interval) = args.watch else {
            let report = ask(args, paint).await;
            let _closed = io::stderr().write_all(report.err.as_bytes());
            print(&report.out)?;
            return Ok(report.code);
        };
        watch(args, paint, interval).await
    })
}

/// Reports until ctrl-C; the exit code is the last report's.
async fn watch(args: &Args, paint: Paint, interval: Duration) -> anyhow::Result<u8> {
    let in_place = io::stdout().is_terminal();
    let mut code = 0;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let mut first = true;
    loop {
        tokio::select! {
            _ = &mut interrupted => return Ok(code),
            _ = ticks.tick() => {}
        }
        let report = tokio::select! {
            _ = &mut interrupted => return Ok(code),
            report = ask(args, paint) => report,
        };
        code = report.code;
        let text = if in_place {
            redraw(&report, first)
        } else {
            let _closed = io::stderr().write_all(report.err.as_bytes());
            let between = if first || report.out.is_empty() { "" } else { separator(args.output) };
            format!("{between}{}", report.out)
        };
        first = first && report.out.is_empty() && !in_place;
        let mut out = io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            return Ok(code);
        }
    }
}

/// The report in the place of the former one. What is left of that is cleared line by line: no flicker.
fn redraw(report: &Report, first: bool) -> String {
    let text = format!("{}{}", report.out, report.err).replace('\n', "\x1b[K\n");
    format!("{}\x1b[H{text}\x1b[J", if first { "\x1b[2J" } else { "" })
}

fn separator(format: Format) -> &'static str {
    match format {
        Format::Table | Format::Wide => "\n",
        Format::Json => "",
        Format::Yaml => "---\n",
    }
}

async fn ask(args: &Args, paint: Paint) -> Report {
    if args.cluster {
        return match cluster::status(&args.reach, args.output, paint).await {
            Ok((out, code)) => Report { out, err: String::new(), code },
            Err(error) => Report { out: String::new(), err: format!("mesh-agent: {error:#}\n"), code: FAILED },
        };
    }
    match client::status(&args.run_dir.run_dir).await {
        Ok(status) => report(&status, args, paint),
        Err(error) => Report { out: String::new(), err: silence(&error, &args.run_dir.run_dir), code: NO_AGENT },
    }
}

fn report(status: &Status, args: &Args, paint: Paint) -> Report {
    let code = if status.healthy { 0 } else { FAILED };
    let shown = match &args.namespace {
        Some(namespace) => view::only(status, namespace),
        None => status.clone(),
    };
    match encode(&shown, status.problems.len() - shown.problems.len(), args.output, paint) {
        Ok(out) => Report { out, err: String::new(), code },
        Err(error) => {
            Report { out: String::new(), err: format!("mesh-agent: cannot show the status: {error}\n"), code: FAILED }
        }
    }
}

fn encode(status: &Status, hidden_problems: usize, format: Format, paint: Paint) -> serde_json::Result<String> {
    Ok(match format {
        Format::Table => view::render(status, hidden_problems, false, paint),
        Format::Wide => view::render(status, hidden_problems, true, paint),
        Format::Json => serde_json::to_string_pretty(status)? + "\n",
        Format::Yaml => yaml::emit(&serde_json::to_value(status)?),
    })
}

/// The error and what to do about it.
pub(super) fn silence(error: &client::Error, run_dir: &Path) -> String {
    let remedy = match error {
        client::Error::NoAgent { silence: client::Silence::Absent | client::Silence::Refused, .. } => format!(
            "  start it:       mesh-agent run --manifests DIR --run-dir {0}\n  \
             or name its folder, if it runs with another one:  mesh-agent status --run-dir DIR\n  \
             what it needs:  mesh-agent check --run-dir {0}\n",
            run_dir.display()
        ),
        client::Error::NoAgent { .. } => {
            "  its control thread is stuck or it is stopping: look at its log\n".to_owned()
        }
        client::Error::Io { .. } => "  the socket is for the user that runs the agent: try again as root\n".to_owned(),
        client::Error::Refused { .. } | client::Error::Schema(_) => {
            "  use the mesh-agent binary of the version that is running\n".to_owned()
        }
    };
    format!("mesh-agent: {error}\n{remedy}")
}
