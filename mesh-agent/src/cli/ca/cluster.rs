//! Nodes and pods as the API server says.

use std::{future::Future, path::PathBuf, sync::Arc};

use super::{ACCOUNT, Args, lifetimes, limits, listen, names, split_account};
use crate::{
    ca::{
        cluster::{Cluster, Options, Root},
        server::Server,
    },
    kubernetes::Access,
};

/// The service account of agents, in the authority's namespace.
const AGENT: &str = "mesh-agent";

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "In a cluster")]
pub(super) struct ClusterArgs {
    /// Ask the API server who calls and which pods there are [default within a cluster]
    #[arg(long, env = "MESH_AGENT_KUBERNETES")]
    pub(super) kubernetes: bool,
    /// Kubeconfig of that API server [default: the service account of this pod]
    #[arg(long, value_name = "FILE", requires = "kubernetes", env = "MESH_AGENT_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of --root-secret and --bundle [default: that of the service account]
    #[arg(long, value_name = "NAME", env = "MESH_AGENT_CA_NAMESPACE")]
    namespace: Option<String>,
    /// What the tokens of callers have to be made for
    #[arg(long, value_name = "NAME", default_value = "mesh-agent-ca", env = "MESH_AGENT_CA_AUDIENCE")]
    audience: String,
    /// Namespace and service account of agents [default: mesh-agent in --namespace]
    #[arg(long, value_name = "NAMESPACE/ACCOUNT", env = "MESH_AGENT_CA_AGENT_ACCOUNT")]
    agent_account: Option<String>,
    /// Secret of the root, made if there is none; or of an intermediate, as cert-manager makes it
    #[arg(
        long,
        value_name = "NAME",
        default_value = "mesh-agent-ca-root",
        conflicts_with = "root",
        env = "MESH_AGENT_CA_ROOT_SECRET"
    )]
    root_secret: String,
    /// ConfigMap that the trust bundle is kept in
    #[arg(long, value_name = "NAME", default_value = "mesh-agent-ca-bundle", env = "MESH_AGENT_CA_BUNDLE_NAME")]
    bundle: String,
}

pub(super) async fn serve(args: &Args, end: impl Future<Output = ()>) -> anyhow::Result<()> {
    let ClusterArgs { kubeconfig, namespace, audience, agent_account, root_secret, bundle, .. } = &args.cluster;
    let access = Access { kubeconfig: kubeconfig.clone(), context: None };
    let cluster = Arc::new(Cluster::new(&access, namespace.as_deref()).await?);
    let agent = match agent_account {
        Some(account) => split_account("--agent-account", account)?,
        None => (cluster.namespace().to_owned(), AGENT.to_owned()),
    };
    let options = Options {
        audience: audience.clone(),
        agent,
        root: args.root.clone().map_or_else(|| Root::Secret(root_secret.clone()), Root::Folder),
        bundle: bundle.clone(),
        trust_domain: args.trust_domain.clone(),
        lifetimes: lifetimes(args),
        new_root: args.new_root,
    };
    let names = names(args, cluster.namespace(), &services(cluster.namespace()))?;
    let pods = cluster.pods(&options);
    let mut following = tokio::spawn({
        let (cluster, pods) = (Arc::clone(&cluster), Arc::clone(&pods));
        async move { cluster.follow(pods).await }
    });
    tokio::pin!(end);
    let (authority, keeper) = tokio::select! {
        opened = cluster.open(&options) => opened?,
        () = &mut end => return Ok(()),
    };
    let mut keeping = tokio::spawn(keeper.run(Arc::clone(&authority)));
    let reviews = cluster.reviews(&options, Arc::clone(&pods));
    let server = Server::new(authority, &names, Box::new(reviews), Box::new(pods), limits(args))?;
    let broken = async move {
        tokio::select! {
            end = &mut following => anyhow::anyhow!("following the pods ended: {end:?}"),
            end = &mut keeping => anyhow::anyhow!("keeping root and bundle ended: {end:?}"),
        }
    };
    listen(args, server, end, broken).await
}

/// How the Service is called, from near to far.
fn services(namespace: &str) -> Vec<String> {
    [
        format!("{ACCOUNT}.{namespace}"),
        format!("{ACCOUNT}.{namespace}.svc"),
        format!("{ACCOUNT}.{namespace}.svc.cluster.local"),
    ]
    .to_vec()
}
