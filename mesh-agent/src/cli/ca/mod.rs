//! `mesh-agent ca`.

mod cluster;
mod manifests;
mod pages;

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    duration, host,
    logging::{self, LogFormat},
    run::trust_domain,
};
use crate::{
    admin::http,
    ca::{
        Lifetimes,
        server::{Limits, Names, Server},
    },
    model::{DEFAULT_TRUST_DOMAIN, Identity},
};

const EXAMPLES: &str = "\
Examples:
  mesh-agent ca --kubernetes        in a cluster: docs/IDENTITY.md
  mesh-agent ca --kubernetes --root-secret mesh-ca --kubeconfig ~/.kube/config --namespace mesh-system
  mesh-agent ca --manifests /etc/mesh-agent/manifests --tokens /etc/mesh-agent/tokens
  mesh-agent ca --manifests ./pods --tokens ./tokens --root ./ca --name ca.example --listen 10.0.0.1:15012
  mesh-agent ca ... --new-root      begin to replace the root

Without a cluster, --tokens has a line NODE TOKEN for each node. Agents are given the same token and the file bundle.pem of --root:
  mesh-agent run --ca-address ca.example:15012 --ca-bundle bundle.pem --ca-token token";

/// Where it lives unless it is told otherwise, and as whom.
const NAMESPACE: &str = "mesh-system";
const ACCOUNT: &str = "mesh-agent-ca";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Address to listen on
    #[arg(long, value_name = "IP:PORT", default_value = "[::]:15012", env = "MESH_AGENT_CA_LISTEN")]
    listen: SocketAddr,
    /// Folder of the root: root-cert.pem and root-key.pem, made if there is nothing; or an intermediate of another
    /// authority: tls.crt, tls.key and ca.crt [default: /var/lib/mesh-agent/ca; in a cluster --root-secret]
    #[arg(long, value_name = "DIR", env = "MESH_AGENT_CA_FOLDER")]
    root: Option<PathBuf>,
    /// Folder of Kubernetes YAML: which node runs which service accounts
    #[arg(long, value_name = "DIR", requires = "tokens", conflicts_with = "kubernetes", env = "MESH_AGENT_MANIFESTS")]
    manifests: Option<PathBuf>,
    /// File with a line NODE TOKEN for each node; read again when it changes
    #[arg(long, value_name = "FILE", requires = "manifests", env = "MESH_AGENT_CA_TOKENS")]
    tokens: Option<PathBuf>,
    #[command(flatten)]
    cluster: cluster::ClusterArgs,
    /// Trust domain of all identities
    #[arg(long, value_name = "NAME", default_value = DEFAULT_TRUST_DOMAIN, value_parser = trust_domain, env = "MESH_AGENT_TRUST_DOMAIN")]
    trust_domain: String,
    /// A host name or IP address that callers know it by; repeatable [default: localhost, the host name and --listen; in a
    /// cluster mesh-agent-ca.NAMESPACE.svc too]
    #[arg(long, value_name = "NAME", value_delimiter = ',', env = "MESH_AGENT_CA_NAME")]
    name: Vec<String>,
    /// Its own namespace and service account [default: mesh-agent-ca in mesh-system; in a cluster in --namespace]
    #[arg(long, value_name = "NAMESPACE/ACCOUNT", env = "MESH_AGENT_CA_ACCOUNT")]
    account: Option<String>,
    /// The longest life of a workload's certificate
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration::parse_positive, env = "MESH_AGENT_CA_LIFETIME")]
    lifetime: Duration,
    /// Life of an intermediate; the next one takes over at half of it
    #[arg(long, value_name = "TIME", default_value = "720h", value_parser = duration::parse_positive, env = "MESH_AGENT_CA_INTERMEDIATE_LIFETIME")]
    intermediate_lifetime: Duration,
    /// Life of a root; the next one is announced after four fifths of it
    #[arg(long, value_name = "TIME", default_value = "87600h", value_parser = duration::parse_positive, env = "MESH_AGENT_CA_ROOT_LIFETIME")]
    root_lifetime: Duration,
    /// How long a next root is announced before it signs: time for bundle.pem to reach all agents
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration::parse, env = "MESH_AGENT_CA_ROOT_OVERLAP")]
    root_overlap: Duration,
    /// Begin to replace the root, unless that is under way
    #[arg(long)]
    new_root: bool,
    /// Certificates per second that a node may ask for, over a longer time
    #[arg(long, value_name = "N", default_value_t = Limits::default().rate, value_parser = clap::value_parser!(u32).range(1..), env = "MESH_AGENT_CA_NODE_RATE")]
    node_rate: u32,
    /// Certificates that a node may ask for at once after a pause
    #[arg(long, value_name = "N", default_value_t = Limits::default().burst, value_parser = clap::value_parser!(u32).range(1..), env = "MESH_AGENT_CA_NODE_BURST")]
    node_burst: u32,
    /// How the log looks
    #[arg(long, value_name = "FORMAT", default_value = "text", env = "MESH_AGENT_LOG_FORMAT")]
    log_format: LogFormat,
    /// What is logged
    #[arg(long, value_name = "FILTER", default_value = "info", env = "MESH_AGENT_LOG")]
    log: String,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    logging::init(args.log_format, &args.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    runtime.block_on(serve(args))
}

async fn serve(args: &Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let end = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    match (&args.manifests, &args.tokens) {
        (Some(folder), Some(tokens)) => manifests::serve(args, folder, tokens, end).await,
        _ if args.cluster.kubernetes || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            cluster::serve(args, end).await
        }
        _ => anyhow::bail!("give --kubernetes in a cluster, or --manifests DIR and --tokens FILE outside"),
    }
}

/// Serves until the end, or until something that has to go on ends.
async fn listen(
    args: &Args,
    server: Server,
    end: impl Future<Output = ()>,
    broken: impl Future<Output = anyhow::Error>,
) -> anyhow::Result<()> {
    let counts = server.counts();
    let listener = http::listen(args.listen).with_context(|| {
        format!("--listen: cannot listen on {}; give an address of this machine and a free port", args.listen)
    })?;
    let address = listener.local_addr().context("--listen")?;
    tracing::info!(%address, trust_domain = args.trust_domain, "serving certificates");
    tokio::select! {
        () = server.run(listener, end) => {}
        error = broken => return Err(error),
    }
    let refused = counts.refused().iter().map(|(reason, count)| format!("{reason}={count}")).collect::<Vec<_>>();
    tracing::info!(signed = counts.signed(), refused = refused.join(" "), "ended");
    Ok(())
}

fn limits(args: &Args) -> Limits {
    Limits { rate: args.node_rate, burst: args.node_burst, ..Limits::default() }
}

fn lifetimes(args: &Args) -> Lifetimes {
    Lifetimes {
        root: args.root_lifetime,
        intermediate: args.intermediate_lifetime,
        leaf: args.lifetime,
        overlap: args.root_overlap,
    }
}

fn names(args: &Args, namespace: &str, services: &[String]) -> anyhow::Result<Names> {
    let mut hosts = args.name.clone();
    if hosts.is_empty() {
        hosts = ["localhost", "127.0.0.1", "::1"].map(ToOwned::to_owned).to_vec();
        hosts.extend(host::node_name());
        hosts.extend(Some(args.listen.ip()).filter(|ip: &IpAddr| !ip.is_unspecified()).map(|ip| ip.to_string()));
        hosts.extend_from_slice(services);
        hosts.dedup();
    }
    let (namespace, account) = match &args.account {
        Some(account) => split_account("--account", account)?,
        None => (namespace.to_owned(), ACCOUNT.to_owned()),
    };
    let uri = format!("spiffe://{}/ns/{namespace}/sa/{account}", args.trust_domain);
    let identity = uri.parse::<Identity>().map_err(|error| anyhow::anyhow!("--account: {error}"))?;
    Ok(Names { hosts, identity })
}

fn split_account(flag: &str, account: &str) -> anyhow::Result<(String, String)> {
    let split = account.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    let (namespace, name) = split.with_context(|| {
        format!("{flag}: {account:?} is not NAMESPACE/ACCOUNT; write it like {NAMESPACE}/{ACCOUNT}")
    })?;
    Ok((namespace.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(extra: &[&str]) -> Result<Args, clap::Error> {
        let line = ["mesh-agent", "ca", "--manifests", "/m", "--tokens", "/t"];
        match Cli::try_parse_from(line.iter().chain(extra))?.command {
            Command::Ca(args) => Ok(*args),
            _ => unreachable!(),
        }
    }

    #[test]
    fn defaults() {
        let args = parse(&[]).unwrap();
        assert_eq!(lifetimes(&args), Lifetimes::default());
        assert_eq!(args.listen.port(), 15012);
        let names = names(&args, NAMESPACE, &[]).unwrap();
        assert_eq!(names.identity.to_string(), "spiffe://cluster.local/ns/mesh-system/sa/mesh-agent-ca");
        assert!(names.hosts.contains(&"localhost".to_owned()) && names.hosts.contains(&"::1".to_owned()));
    }

    #[test]
    fn names_are_those_that_were_given() {
        let given = names(&parse(&["--name", "ca.example,10.0.0.1"]).unwrap(), NAMESPACE, &[]).unwrap();
        assert_eq!(given.hosts, ["ca.example", "10.0.0.1"]);
        let error = names(&parse(&["--account", "ca"]).unwrap(), NAMESPACE, &[]).unwrap_err().to_string();
        assert!(error.contains("--account") && error.contains("mesh-system/mesh-agent-ca"), "{error}");
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        for (flag, value) in
            [("--listen", "localhost"), ("--lifetime", "0s"), ("--node-rate", "0"), ("--trust-domain", "A")]
        {
            let error = parse(&[flag, value]).unwrap_err().to_string();
            assert!(error.contains(flag) && error.contains(value), "{error}");
        }
    }
}
