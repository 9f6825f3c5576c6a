//! What commands say about a whole cluster: `status --cluster`, and what `enable` and `disable` ask agents.

mod ask;
mod report;
mod view;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::Context;
pub(super) use ask::{Answers, ask_all};
use report::{Seen, report};

use super::{
    FAILED,
    output::{Format, text::Paint, yaml},
};
use crate::{
    admin::http::DEFAULT_PORT,
    kubernetes::{
        Access,
        cluster::{AGENTS, Cluster},
    },
    model::Status,
};

/// Which cluster, and where its agents are.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ClusterArgs {
    /// Kubeconfig of the cluster [default: $KUBECONFIG, ~/.kube/config, or the service account of this pod]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Labels of the agents' pods
    #[arg(long, value_name = "SELECTOR", default_value = AGENTS)]
    agents: String,
    /// Port of the agents' --http-address
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT)]
    agent_port: u16,
}

impl ClusterArgs {
    /// Its client.
    pub(super) async fn open(&self) -> anyhow::Result<Cluster> {
        let access = Access { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() };
        Ok(Cluster::open(&access).await?)
    }

    /// Asks every agent for what is at a path below `/v1/`, or those of some nodes.
    pub(super) async fn ask<T: serde::de::DeserializeOwned + Send + 'static>(
        &self,
        cluster: &Cluster,
        path: &str,
        nodes: Option<&BTreeSet<String>>,
    ) -> anyhow::Result<Answers<T>> {
        let mut agents = cluster.agents(&self.agents).await?;
        agents.retain(|agent| nodes.is_none_or(|nodes| nodes.contains(&agent.node)));
        Ok(ask_all(cluster, agents, self.agent_port, path).await)
    }
}

/// The status of the cluster in a format, and the exit code.
pub(super) async fn status(args: &ClusterArgs, format: Format, paint: Paint) -> anyhow::Result<(String, u8)> {
    let cluster = args.open().await?;
    let report = report(&see(args, &cluster).await?);
    let code = if report.healthy { 0 } else { FAILED };
    let text = match format {
        Format::Table => view::render(&report, false, paint),
        Format::Wide => view::render(&report, true, paint),
        Format::Json => serde_json::to_string_pretty(&report)? + "\n",
        Format::Yaml => yaml::emit(&serde_json::to_value(&report)?),
    };
    Ok((text, code))
}

async fn see(args: &ClusterArgs, cluster: &Cluster) -> anyhow::Result<Seen> {
    let mut notes = Vec::new();
    let namespaces = cluster.namespaces().await?;
    let nodes = match cluster.nodes().await {
        Ok(nodes) => nodes,
        Err(error) if error.is_forbidden() => {
            notes.push(format!("nodes are those that agents or pods are on: {error}"));
            Vec::new()
        }
        Err(error) => return Err(error.into()),
    };
    let sets = match cluster.agent_sets(&args.agents).await {
        Ok(sets) => sets,
        Err(error) if error.is_forbidden() => {
            notes.push(format!("DaemonSets are not shown: {error}"));
            Vec::new()
        }
        Err(error) => return Err(error.into()),
    };
    let answers: Answers<Status> = args.ask(cluster, "/v1/status", None).await?;
    let mut pods = Vec::new();
    for namespace in namespaces.iter().filter(|namespace| namespace.is_enrolled()) {
        let found = cluster.pods(&namespace.name).await;
        pods.extend(found.with_context(|| format!("the pods of the enrolled namespace {}", namespace.name))?);
    }
    Ok(Seen { nodes, sets, answers, namespaces, pods, notes })
}
