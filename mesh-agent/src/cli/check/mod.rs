//! `mesh-agent check`: whether this machine can run the agent.

mod cluster;
mod host_checks;
mod ports;

use std::{fmt::Write, io, path::PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use super::{
    Bpffs, Cgroup, FAILED, RunDir, host,
    output::text::{Paint, Tone, printable, wrap},
    print,
};
use crate::kubernetes::Access;

const EXAMPLES: &str = "\
Examples:
  mesh-agent check
  mesh-agent check --manifests /etc/mesh-agent/manifests    also: are the agent's ports free in the pods
  mesh-agent check --kubernetes                             also: may the agent read what it needs of the API server
  mesh-agent check -o json | jq '.checks[] | select(.outcome == \"fail\")'

Exit codes: 0 the agent can run, 1 something that it needs is missing.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    run_dir: RunDir,
    #[command(flatten)]
    bpffs: Bpffs,
    #[command(flatten)]
    cgroup: Cgroup,
    /// Also look for port conflicts in the pods of these manifests
    #[arg(long, value_name = "DIR", env = "MESH_AGENT_MANIFESTS")]
    manifests: Option<PathBuf>,
    /// Also ask the API server for all that the agent reads of it
    #[arg(long, env = "MESH_AGENT_KUBERNETES")]
    kubernetes: bool,
    /// Where that API server is, and as whom to ask [default: the pod's service account, or $KUBECONFIG, or ~/.kube/config]
    #[arg(long, value_name = "FILE", env = "MESH_AGENT_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current context]
    #[arg(long, value_name = "NAME", env = "MESH_AGENT_CONTEXT")]
    context: Option<String>,
    /// Name of this node in the cluster [default: the host name]
    #[arg(long, value_name = "NAME", env = "MESH_AGENT_NODE_NAME")]
    node_name: Option<String>,
    /// Format of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// No colours, as when standard output is not a terminal or NO_COLOR is set
    #[arg(long)]
    no_color: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// As it should be.
    Ok,
    /// The agent runs, not at its best.
    Warn,
    /// The agent cannot run.
    Fail,
}

/// One line of the report.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    /// What was looked at.
    name: &'static str,
    outcome: Outcome,
    /// What was found.
    found: String,
    /// What to do about it; empty when nothing.
    remedy: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Ok, found: found.into(), remedy: String::new() }
    }

    fn warn(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Warn, found: found.into(), remedy: remedy.into() }
    }

    fn fail(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Fail, found: found.into(), remedy: remedy.into() }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let checks = all(args);
    let text = match args.output {
        Format::Table => table(&checks, Paint::for_stream(&io::stdout(), args.no_color)),
        Format::Json => {
            let report = serde_json::json!({ "ok": can_run(&checks), "checks": checks });
            serde_json::to_string_pretty(&report)? + "\n"
        }
    };
    print(&text)?;
    Ok(if can_run(&checks) { 0 } else { FAILED })
}

fn all(args: &Args) -> Vec<Check> {
    let (other_agent, agent_runs) = host_checks::other_agent(&args.run_dir.run_dir);
    let mut checks = vec![
        host_checks::kernel(),
        host_checks::cgroup(args.cgroup.cgroup.as_deref()),
        host_checks::bpffs(&args.bpffs.bpffs),
        host_checks::capabilities(),
        host_checks::pid_namespace(),
        host_checks::object(),
        host_checks::btf(),
        host_checks::descriptors(),
        other_agent,
    ];
    if let Some(cgroup) = args.cgroup.cgroup.clone().or_else(|| host::cgroup_mount().ok().flatten()) {
        checks.push(host_checks::foreign_programs(&args.bpffs.bpffs, &cgroup));
    }
    if let Some(manifests) = &args.manifests {
        checks.extend(ports::checks(manifests, agent_runs));
    }
    if args.kubernetes || args.kubeconfig.is_some() || args.context.is_some() {
        let access = Access { kubeconfig: args.kubeconfig.clone(), context: args.context.clone() };
        let node = args.node_name.clone().or_else(host::node_name).unwrap_or_default();
        checks.push(cluster::check(&access, &node));
    }
    checks
}

fn can_run(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.outcome != Outcome::Fail)
}

fn table(checks: &[Check], paint: Paint) -> String {
    let mut out = String::new();
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    for check in checks {
        let (mark, tone) = match check.outcome {
            Outcome::Ok => ("✓", Tone::Good),
            Outcome::Warn => ("‼", Tone::Warn),
            Outcome::Fail => ("✗", Tone::Bad),
        };
        let _ = writeln!(out, "{} {:<width$}  {}", paint.tone(mark, tone), check.name, printable(&check.found));
        if !check.remedy.is_empty() {
            wrap(&mut out, &format!("→ {}", check.remedy), width + 4, 118);
        }
    }
    let of = |outcome| checks.iter().filter(|check| check.outcome == outcome).count();
    let verdict = match (of(Outcome::Fail), of(Outcome::Warn)) {
        (0, 0) => paint.tone("The agent can run here.", Tone::Good),
        (0, warnings) => paint.tone(&format!("The agent can run here; {warnings} to look at."), Tone::Warn),
        (failures, _) => paint.tone(&format!("The agent cannot run here: {failures} to mend."), Tone::Bad),
    };
    let _ = writeln!(out, "\n{verdict}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_mark_and_a_lack_its_remedy() {
        let checks = [
            Check::ok("kernel", "6.12.1"),
            Check::warn("descriptors", "at most 1,024", "raise it"),
            Check::fail("bpffs", "not mounted", "mount it"),
        ];
        let expected = "\
✓ kernel       6.12.1
‼ descriptors  at most 1,024
               → raise it
✗ bpffs        not mounted
               → mount it

The agent cannot run here: 1 to mend.
";
        assert_eq!(table(&checks, Paint::PLAIN), expected);
        assert!(!can_run(&checks));
        assert!(can_run(&checks[..2]), "a warning does not stop the agent");
    }
}
