//! The agent under test.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde::Deserialize;

use super::{
    Workspace,
    manifests::Manifests,
    poll,
    process::{Launch, Process},
};
use crate::command::{output, show};

/// States in which the mesh does not touch what a pod opens: the agent may have relayed connections to carry on with.
pub(crate) const DISABLED: [&str; 2] = ["off", "draining"];
/// The state in which it is captured.
pub(crate) const ENABLED: [&str; 1] = ["armed"];

/// The node that it is told to be, where there is one.
pub(crate) const NODE: &str = "node-1";

/// A running agent. On drop it drains, ends, and what it left in the kernel is removed.
pub(crate) struct Agent {
    binary: PathBuf,
    run_dir: PathBuf,
    bpffs: PathBuf,
    process: Process,
    ready_after: Duration,
}

/// Where an agent has its objects from.
pub(crate) enum Source<'a> {
    /// A folder.
    Manifests(&'a Manifests),
    /// An API server: the kubeconfig.
    Kubernetes(&'a Path),
}

/// What we read of `mesh-agent status -o json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    /// The node.
    pub(crate) node: NodeStatus,
    /// The pods of the node.
    pub(crate) pods: Vec<PodStatus>,
}

/// Of the node.
#[derive(Debug, Deserialize)]
pub(crate) struct NodeStatus {
    /// How many states have been published.
    pub(crate) snapshot: u64,
}

/// Of a pod.
#[derive(Debug, Deserialize)]
pub(crate) struct PodStatus {
    /// Its name.
    pub(crate) name: ObjectName,
    /// `off`, `armed`, `draining`, `failed` or `remote`.
    pub(crate) state: String,
    /// Relayed connections it opened.
    pub(crate) outbound: RelayStatus,
    /// Direct ones.
    pub(crate) direct_total: u64,
    /// All that the mesh governed.
    pub(crate) captured: u64,
}

/// Namespace and name.
#[derive(Debug, Deserialize)]
pub(crate) struct ObjectName {
    /// The namespace.
    pub(crate) namespace: String,
    /// The name.
    pub(crate) name: String,
}

/// Relayed connections.
#[derive(Debug, Deserialize)]
pub(crate) struct RelayStatus {
    /// Since the agent started.
    pub(crate) total: u64,
}

impl Agent {
    /// Starts it as the agent of `node`, and waits until it says that it is ready. Agents of several nodes get along.
    ///
    /// # Errors
    /// It ended or is not ready in time: the message has the end of its log.
    pub(crate) fn start(
        launch: &Launch<'_>,
        workspace: &Workspace,
        binary: PathBuf,
        node: &str,
        source: &Source<'_>,
        more: &[&str],
    ) -> Result<Self> {
        let (run_dir, bpffs) = (workspace.path().join(node), workspace.bpffs().join(node));
        let mut args: Vec<_> = ["run", "--node-name", node, "--drain-deadline", "1s"].map(Into::into).into();
        let patience = match source {
            Source::Manifests(manifests) => {
                args.extend(["--manifests".into(), manifests.folder().as_os_str().to_owned()]);
                Duration::from_secs(10)
            }
            Source::Kubernetes(kubeconfig) => {
                args.extend(["--kubernetes".into(), "--kubeconfig".into(), kubeconfig.as_os_str().to_owned()]);
                Duration::from_mins(2)
            }
        };
        args.extend(more.iter().map(Into::into));
        args.extend(["--run-dir".into(), run_dir.clone().into(), "--bpffs".into(), bpffs.clone().into()]);
        // One authority for the agents of all nodes.
        args.extend(["--ca-root".into(), workspace.path().join("ca").into()]);
        if launch.pin.is_some() {
            args.extend(["--workers".into(), "1".into()]);
        }
        let launch = Launch { at_our_death: Signal::SIGTERM, ..*launch };
        let start = Instant::now();
        let process = launch.start(&binary, &args, workspace.path().join(format!("mesh-agent-{node}.log")))?;
        let mut agent = Self { binary, run_dir, bpffs, process, ready_after: Duration::ZERO };
        let ready = poll("mesh-agent ready", patience, || {
            if let Some(status) = agent.process.ended()? {
                bail!("mesh-agent ended: {status}");
            }
            let is_ready = |line: &str| line.split_whitespace().any(|word| word == "ready");
            Ok(agent.process.log().lines().any(is_ready).then_some(()))
        });
        ready.with_context(|| agent.process.last_words())?;
        agent.ready_after = start.elapsed();
        Ok(agent)
    }

    /// From its start until it said that it is ready.
    pub(crate) fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its log.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        self.process.last_words()
    }

    /// `mesh-agent status`, as a user sees it. An unhealthy agent's is shown too.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn table(&self) -> Result<String> {
        self.ask(&["-o", "table"])
    }

    /// `mesh-agent status -o json`.
    ///
    /// # Errors
    /// It does not answer, or not as expected.
    pub(crate) fn status(&self) -> Result<Status> {
        let text = self.ask(&["-o", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("mesh-agent status said: {text}"))
    }

    /// Waits until every pod of the namespace is in one of these states, and returns when that was seen.
    ///
    /// # Errors
    /// Not within ten seconds.
    pub(crate) fn await_pods(&self, namespace: &str, states: &[&str]) -> Result<Instant> {
        let mut seen = String::new();
        poll(&format!("pods {}", states.join(" or ")), Duration::from_secs(10), || {
            let mut pods = self.status()?.pods;
            pods.retain(|pod| pod.name.namespace == namespace);
            seen = pods.iter().map(|pod| format!("{} {}", pod.name.name, pod.state)).collect::<Vec<_>>().join(", ");
            Ok((!pods.is_empty() && pods.iter().all(|pod| states.contains(&pod.state.as_str()))).then(Instant::now))
        })
        .with_context(|| format!("pods: {seen}\n{}", self.process.last_words()))
    }

    fn ask(&self, format: &[&str]) -> Result<String> {
        let mut command = std::process::Command::new(&self.binary);
        command.arg("status").args(format).arg("--run-dir").arg(&self.run_dir);
        let done = command.output().with_context(|| show(&command))?;
        // Exit code 1 is "unhealthy", and an answer all the same.
        if !matches!(done.status.code(), Some(0 | 1)) || done.stdout.is_empty() {
            let said = String::from_utf8_lossy(&done.stderr);
            bail!("{}: {} {}\n{}", show(&command), done.status, said.trim_end(), self.process.last_words());
        }
        String::from_utf8(done.stdout).context("status is not UTF-8")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.stop(Duration::from_secs(5));
        let mut cleanup = std::process::Command::new(&self.binary);
        cleanup.arg("cleanup").arg("--run-dir").arg(&self.run_dir).arg("--bpffs").arg(&self.bpffs);
        if let Err(error) = output(&mut cleanup) {
            eprintln!("{error:#}");
        }
    }
}
