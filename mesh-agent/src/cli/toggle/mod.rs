//! `mesh-agent enable` and `disable`: the annotation of namespaces, the wait until every pod confirms, and the way back when
//! things get worse.

mod compare;
mod progress;
mod rollout;

use std::time::Duration;

use anyhow::Context;
use compare::Limits;
use rollout::{Plan, Toward};

use super::{cluster::ClusterArgs, duration};

const ENABLE_EXAMPLES: &str = "\
Examples:
  mesh-agent enable shop --wait
  mesh-agent enable shop cart --auto-rollback --observe 2m --max-error-increase 0.5
  kubectl mesh enable shop --wait --timeout 5m

What is compared: connections that failed or were reset, and the round trip times of open ones, as the kernel counts them in
the pods' network namespaces, --observe long before and after. See docs/CLUSTER.md.

Exit codes: 0 enabled (and confirmed, with --wait), 1 not confirmed, worse and rolled back, or interrupted.";

const DISABLE_EXAMPLES: &str = "\
Examples:
  mesh-agent disable shop
  mesh-agent disable shop --wait

Exit codes: 0 disabled (and confirmed, with --wait), 1 not confirmed, or interrupted.";

/// What both take.
#[derive(Debug, clap::Args)]
struct Common {
    /// The namespaces
    #[arg(value_name = "NAMESPACE", required = true)]
    namespaces: Vec<String>,
    /// Wait until every pod on every node confirms
    #[arg(long)]
    wait: bool,
    /// How long to wait for it
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration::parse_positive)]
    timeout: Duration,
    #[command(flatten)]
    reach: ClusterArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = ENABLE_EXAMPLES)]
pub(super) struct EnableArgs {
    #[command(flatten)]
    common: Common,
    /// Compare before and after, and undo it when it is worse than the limits, not confirmed in time or interrupted
    #[arg(long)]
    auto_rollback: bool,
    /// By how many percentage points the share of failed connections may rise
    #[arg(long, value_name = "POINTS", default_value_t = 1.0, value_parser = limit, requires = "auto_rollback")]
    max_error_increase: f64,
    /// By how many percent the round trip time may rise
    #[arg(long, value_name = "PERCENT", default_value_t = 50.0, value_parser = limit, requires = "auto_rollback")]
    max_latency_increase: f64,
    /// How long to look, before and after
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration::parse_positive, requires = "auto_rollback")]
    observe: Duration,
}

#[derive(Debug, clap::Args)]
#[command(after_help = DISABLE_EXAMPLES)]
pub(super) struct DisableArgs {
    #[command(flatten)]
    common: Common,
}

fn limit(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is not a number from 0 on");
    text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0).ok_or_else(wrong)
}

pub(super) fn enable(args: EnableArgs) -> anyhow::Result<u8> {
    let limits = Limits { error_points: args.max_error_increase, latency_percent: args.max_latency_increase };
    let guard = args.auto_rollback.then_some((limits, args.observe));
    run(&plan(args.common, Toward::In, guard))
}

pub(super) fn disable(args: DisableArgs) -> anyhow::Result<u8> {
    run(&plan(args.common, Toward::Out, None))
}

fn plan(common: Common, toward: Toward, guard: Option<(Limits, Duration)>) -> Plan {
    let Common { mut namespaces, wait, timeout, reach } = common;
    namespaces.sort();
    namespaces.dedup();
    Plan { namespaces, toward, wait: wait || guard.is_some(), timeout, guard, reach }
}

fn run(plan: &Plan) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(rollout::run(plan))
}
