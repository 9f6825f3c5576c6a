//! The rollout itself: look, annotate, wait, look again, and back if need be.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};

use super::{
    compare::{Limits, compare, window},
    progress::{self, Progress},
};
use crate::{
    cli::{FAILED, cluster::ClusterArgs},
    kubernetes::cluster::Cluster,
    model::PodNetwork,
};

/// How often pods are looked at while they are waited for.
const LOOK: Duration = Duration::from_secs(1);
/// How long the way back may take.
const RESTORE: Duration = Duration::from_secs(30);
/// Samples of a window.
const SAMPLES: u32 = 5;
/// Pods that are named in one line of progress.
const NAMED: usize = 5;

/// Into the mesh, or out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Toward {
    In,
    Out,
}

impl Toward {
    const fn value(self) -> &'static str {
        match self {
            Self::In => "enabled",
            Self::Out => "disabled",
        }
    }
}

/// What is to be done.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) namespaces: Vec<String>,
    pub(super) toward: Toward,
    pub(super) wait: bool,
    pub(super) timeout: Duration,
    /// What is not allowed to happen, and how long that is looked at; it is undone otherwise.
    pub(super) guard: Option<(Limits, Duration)>,
    pub(super) reach: ClusterArgs,
}

/// What the namespaces' annotations were, by name.
type Before = BTreeMap<String, Option<String>>;

/// How it ended, other than by an error.
enum End {
    Done,
    /// Why it is to be undone, or has not come about.
    Bad(String),
}

/// Does it. The exit code.
pub(super) async fn run(plan: &Plan) -> anyhow::Result<u8> {
    let cluster = plan.reach.open().await?;
    // All must be there before any is changed.
    let mut before = Before::new();
    for name in &plan.namespaces {
        before.insert(name.clone(), cluster.namespace(name).await?.annotation);
    }
    let has_begun = Cell::new(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let end = tokio::select! {
        end = carry_out(plan, &cluster, &has_begun) => match end {
            Ok(end) => end,
            Err(error) if has_begun.get() => End::Bad(format!("{error:#}")),
            Err(error) => return Err(error),
        },
        _ = interrupt.recv() => End::Bad("interrupted".to_owned()),
        _ = terminate.recv() => End::Bad("terminated".to_owned()),
    };
    let why = match end {
        End::Done => return Ok(0),
        End::Bad(why) => why,
    };
    let names = plan.namespaces.join(", ");
    if !has_begun.get() {
        say(&format!("{why}; nothing was changed"));
    } else if plan.guard.is_some() {
        say(&format!("{why}; rolling back"));
        let late = |_| anyhow::anyhow!("ROLLBACK FAILED: the API server does not answer; {names} may still be enabled");
        timeout(RESTORE, restore(&cluster, &before)).await.map_err(late)??;
        say(&format!("rolled back: {names} as before"));
    } else {
        let undo = if plan.toward == Toward::In { "disable" } else { "enable" };
        say(&format!(
            "{why}; {names} stays {}; to undo it: mesh-agent {undo} {}",
            plan.toward.value(),
            plan.namespaces.join(" ")
        ));
    }
    Ok(FAILED)
}

async fn carry_out(plan: &Plan, cluster: &Cluster, has_begun: &Cell<bool>) -> anyhow::Result<End> {
    let before = match plan.guard {
        Some((_, observe)) => {
            say(&format!("looking at what is, for {} s", observe.as_secs_f64()));
            Some(look(plan, cluster, observe).await.context("nothing to compare with, and nothing was changed")?)
        }
        None => None,
    };
    has_begun.set(true);
    for name in &plan.namespaces {
        cluster.annotate(name, Some(plan.toward.value())).await?;
        say(&format!("namespace {name} is {}", plan.toward.value()));
    }
    if plan.wait
        && let End::Bad(why) = wait(plan, cluster).await?
    {
        return Ok(End::Bad(why));
    }
    let (Some((limits, observe)), Some(before)) = (plan.guard, before) else { return Ok(End::Done) };
    say(&format!("looking at what came of it, for {} s", observe.as_secs_f64()));
    let after = look(plan, cluster, observe).await?;
    let (before, after) = (window(&before), window(&after));
    for (name, window) in [("before", &before), ("after ", &after)] {
        let round_trip = window.round_trip_us.map_or_else(|| "-".to_owned(), |time| format!("{:.2} ms", time / 1e3));
        say(&format!(
            "  {name}  {} connections, {:.2} % failed, round trip {round_trip}",
            window.connections,
            window.failed_percent()
        ));
    }
    let verdict = compare(&before, &after, limits);
    for unknown in &verdict.unknown {
        say(&format!("  not compared: {unknown}"));
    }
    Ok(if verdict.worse.is_empty() { End::Done } else { End::Bad(verdict.worse.join("; ")) })
}

/// Samples of the namespaces' pods, spread over the time.
async fn look(plan: &Plan, cluster: &Cluster, observe: Duration) -> anyhow::Result<Vec<Vec<PodNetwork>>> {
    let begun = Instant::now();
    let mut samples = Vec::new();
    for number in 0..SAMPLES {
        let due = observe * number / (SAMPLES - 1);
        sleep(due.saturating_sub(begun.elapsed())).await;
        samples.push(sample(plan, cluster).await?);
    }
    Ok(samples)
}

/// One sample of them, by the agents of their nodes.
async fn sample(plan: &Plan, cluster: &Cluster) -> anyhow::Result<Vec<PodNetwork>> {
    let mut all = Vec::new();
    for namespace in &plan.namespaces {
        let pods = cluster.pods(namespace).await?;
        let running = pods.into_iter().filter(|pod| pod.running && !pod.host_network);
        let nodes: BTreeSet<String> = running.map(|pod| pod.node).collect();
        let path = format!("/v1/networks?namespace={namespace}");
        let answers = plan.reach.ask::<Vec<PodNetwork>>(cluster, &path, Some(&nodes)).await?;
        let has_agent = |node: &&String| !answers.agents.iter().any(|(agent, _)| agent.node == **node);
        if let Some(node) = nodes.iter().find(has_agent) {
            bail!("node {node} has pods of {namespace} and no agent (--agents says how agents are labelled)");
        }
        for (agent, answer) in answers.agents {
            match answer {
                Ok(pods) => all.extend(pods),
                Err(why) => bail!("the agent of node {} cannot be asked: {why}", agent.node),
            }
        }
    }
    Ok(all)
}

async fn wait(plan: &Plan, cluster: &Cluster) -> anyhow::Result<End> {
    let begun = Instant::now();
    let mut said = BTreeMap::<&str, Progress>::new();
    loop {
        let mut missing = Vec::new();
        for name in &plan.namespaces {
            let pods = match cluster.pods(name).await {
                Ok(pods) => pods,
                // The server may be away for a while.
                Err(error) if begun.elapsed() < plan.timeout && !error.is_forbidden() && !error.is_missing() => {
                    missing.push(error.to_string());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let progress = progress::of(&pods, plan.toward);
            missing.extend(progress.missing.iter().map(|pod| format!("{} on {}: {}", pod.pod, pod.node, pod.why)));
            if said.get(name.as_str()) != Some(&progress) {
                tell(name, &progress, said.get(name.as_str()));
                said.insert(name, progress);
            }
        }
        if missing.is_empty() {
            return Ok(End::Done);
        }
        if begun.elapsed() >= plan.timeout {
            for line in &missing {
                say(&format!("  {line}"));
            }
            let count = missing.len();
            return Ok(End::Bad(format!("{count} not confirmed within {} s", plan.timeout.as_secs_f64())));
        }
        sleep(LOOK).await;
    }
}

fn tell(name: &str, progress: &Progress, before: Option<&Progress>) {
    let missing: Vec<&str> = progress.missing.iter().take(NAMED).map(|pod| pod.pod.as_str()).collect();
    let more = progress.missing.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let waiting = if missing.is_empty() { String::new() } else { format!("; not yet: {}{more}", missing.join(" ")) };
    say(&format!("{name}: {} of {} pods confirmed{waiting}", progress.confirmed, progress.wanted));
    if before.is_none_or(|before| before.exempt != progress.exempt) {
        for pod in &progress.exempt {
            say(&format!("  {}: not waited for: {}", pod.pod, pod.why));
        }
    }
}

async fn restore(cluster: &Cluster, before: &Before) -> anyhow::Result<()> {
    for (name, annotation) in before {
        let was = annotation.as_deref();
        let shown = was.map_or_else(|| "removed".to_owned(), |was| format!("set to {was}"));
        cluster.annotate(name, was).await.with_context(|| {
            format!("ROLLBACK FAILED: the annotation mesh-agent.io/mesh of {name} is to be {shown}")
        })?;
    }
    Ok(())
}

fn say(line: &str) {
    let _closed = writeln!(io::stderr(), "{line}");
}
