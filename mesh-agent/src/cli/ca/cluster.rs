//! Nodes and pods as the API server says.

use std::{future::Future, path::PathBuf, sync::Arc};

use anyhow::Context;

use super::{
    ACCOUNT, Args, lifetimes, limits, listen, names,
    pages::{Opened, Progress},
    split_account,
};
use crate::{
    admin::http,
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
    /// Where /livez, /readyz and /metrics are, e.g. [::]:15020
    #[arg(long, value_name = "ADDRESS", default_value = "none", env = "MESH_AGENT_HTTP_ADDRESS")]
    http_address: http::Address,
}

pub(super) async fn serve(args: &Args, end: impl Future<Output = ()>) -> anyhow::Result<()> {
    let ClusterArgs { kubeconfig, namespace, audience, agent_account, root_secret, bundle, http_address, .. } =
        &args.cluster;
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
    let progress = Arc::new(Progress::new(Arc::clone(&pods)));
    let mut answering = tokio::spawn(serve_http(*http_address, Arc::clone(&progress))?);
    tokio::pin!(end);
    let (authority, keeper) = tokio::select! {
        opened = cluster.open(&options) => opened?,
        () = &mut end => return Ok(()),
    };
    let is_kept = keeper.is_kept();
    let mut keeping = tokio::spawn(keeper.run(Arc::clone(&authority)));
    let reviews = cluster.reviews(&options, Arc::clone(&pods));
    let server = Server::new(Arc::clone(&authority), &names, Box::new(reviews), Box::new(pods), limits(args))?;
    progress.open(Opened { authority, counts: server.counts(), is_kept });
    let broken = async move {
        tokio::select! {
            end = &mut following => anyhow::anyhow!("following the pods ended: {end:?}"),
            end = &mut answering => anyhow::anyhow!("the HTTP listener ended: {end:?}"),
            end = &mut keeping => anyhow::anyhow!("keeping root and bundle ended: {end:?}"),
        }
    };
    listen(args, server, end, broken).await
}

/// Listens now, and answers until the end of time.
fn serve_http(
    address: http::Address,
    progress: Arc<Progress>,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let listener = match address {
        http::Address::None => None,
        http::Address::At(address) => {
            let bound = http::Listener::bind(address);
            Some(bound.with_context(|| format!("cannot listen on --http-address {address}"))?)
        }
    };
    if let Some(address) = listener.as_ref().and_then(http::Listener::local_address) {
        tracing::info!(http = %address, "answering probes");
    }
    Ok(async move {
        match listener {
            Some(listener) => listener.run(progress).await,
            None => std::future::pending().await,
        }
    })
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
