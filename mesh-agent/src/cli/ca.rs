//! `mesh-agent ca`.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{
    duration, host,
    logging::{self, LogFormat},
    run::trust_domain,
};
use crate::{
    ca::{
        Authority, Lifetimes,
        server::{Limits, Names, Server, Tokens},
    },
    discovery,
    model::{DEFAULT_TRUST_DOMAIN, Identity, Mesh, Reason},
};

const EXAMPLES: &str = "\
Examples:
  mesh-agent ca --manifests /etc/mesh-agent/manifests --tokens /etc/mesh-agent/tokens
  mesh-agent ca --manifests ./pods --tokens ./tokens --root ./ca --name ca.example --listen 10.0.0.1:15012
  mesh-agent ca ... --new-root      begin to replace the root

--tokens has a line NODE TOKEN for each node. Agents are given the same token and the file bundle.pem of --root:
  mesh-agent run --ca-address ca.example:15012 --ca-bundle bundle.pem --ca-token token";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Address to listen on
    #[arg(long, value_name = "IP:PORT", default_value = "[::]:15012", env = "MESH_AGENT_CA_LISTEN")]
    listen: SocketAddr,
    /// Folder of the root: root-cert.pem and root-key.pem, made if there is nothing; or an intermediate of another
    /// authority: tls.crt, tls.key and ca.crt
    #[arg(long, value_name = "DIR", default_value = "/var/lib/mesh-agent/ca", env = "MESH_AGENT_CA_FOLDER")]
    root: PathBuf,
    /// Folder of Kubernetes YAML: which node runs which service accounts
    #[arg(long, value_name = "DIR", env = "MESH_AGENT_MANIFESTS")]
    manifests: PathBuf,
    /// File with a line NODE TOKEN for each node; read again when it changes
    #[arg(long, value_name = "FILE", env = "MESH_AGENT_CA_TOKENS")]
    tokens: PathBuf,
    /// Trust domain of all identities
    #[arg(long, value_name = "NAME", default_value = DEFAULT_TRUST_DOMAIN, value_parser = trust_domain, env = "MESH_AGENT_TRUST_DOMAIN")]
    trust_domain: String,
    /// A host name or IP address that callers know it by; repeatable [default: localhost, the host name and --listen]
    #[arg(long, value_name = "NAME", value_delimiter = ',', env = "MESH_AGENT_CA_NAME")]
    name: Vec<String>,
    /// Its own namespace and service account
    #[arg(
        long,
        value_name = "NAMESPACE/ACCOUNT",
        default_value = "mesh-system/mesh-agent-ca",
        env = "MESH_AGENT_CA_ACCOUNT"
    )]
    account: String,
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
    let now = SystemTime::now();
    let tokens = Tokens::open(&args.tokens).context("--tokens")?;
    let authority = Authority::open(&args.root, &args.trust_domain, lifetimes(args), now).context("--root")?;
    if args.new_root {
        authority.replace_root(now).context("--new-root")?;
    }

    let (publish, mesh) = watch::channel(Arc::new(Mesh::default()));
    let site = discovery::Site {
        node: "".into(),
        trust_domain: args.trust_domain.as_str().into(),
        root_namespace: discovery::DEFAULT_ROOT_NAMESPACE.into(),
        first_generation: 1,
    };
    let mut source = tokio::spawn(discovery::file::Manifests::new(&args.manifests, site).run(publish));
    let mut problems = tokio::spawn(tell_problems(mesh.clone()));

    let limits = Limits { rate: args.node_rate, burst: args.node_burst, ..Limits::default() };
    let server = Server::new(authority, &names(args)?, Box::new(tokens), Box::new(mesh), limits)?;
    let counts = server.counts();
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!("--listen: cannot listen on {}; give an address of this machine and a free port", args.listen)
    })?;
    let address = listener.local_addr().context("--listen")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let end = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tracing::info!(%address, trust_domain = args.trust_domain, root = %args.root.display(), "serving certificates");
    tokio::select! {
        () = server.run(listener, end) => {}
        end = &mut source => anyhow::bail!("reading the manifests ended: {end:?}"),
        end = &mut problems => anyhow::bail!("telling the problems of manifests ended: {end:?}"),
    }
    let refused = counts.refused().iter().map(|(reason, count)| format!("{reason}={count}")).collect::<Vec<_>>();
    tracing::info!(signed = counts.signed(), refused = refused.join(" "), "ended");
    Ok(())
}

fn lifetimes(args: &Args) -> Lifetimes {
    Lifetimes {
        root: args.root_lifetime,
        intermediate: args.intermediate_lifetime,
        leaf: args.lifetime,
        overlap: args.root_overlap,
    }
}

fn names(args: &Args) -> anyhow::Result<Names> {
    let mut hosts = args.name.clone();
    if hosts.is_empty() {
        hosts = ["localhost", "127.0.0.1", "::1"].map(ToOwned::to_owned).to_vec();
        hosts.extend(host::node_name());
        hosts.extend(Some(args.listen.ip()).filter(|ip: &IpAddr| !ip.is_unspecified()).map(|ip| ip.to_string()));
        hosts.dedup();
    }
    let (namespace, account) = args.account.split_once('/').unwrap_or_default();
    let uri = format!("spiffe://{}/ns/{namespace}/sa/{account}", args.trust_domain);
    let identity = uri.parse::<Identity>().ok().with_context(|| {
        format!("--account: {:?} is not NAMESPACE/ACCOUNT; write it like mesh-system/mesh-agent-ca", args.account)
    })?;
    Ok(Names { hosts, identity })
}

/// Logs what is wrong with the manifests. Network namespaces are the business of the nodes.
async fn tell_problems(mut mesh: watch::Receiver<Arc<Mesh>>) {
    let mut told = BTreeSet::new();
    while mesh.changed().await.is_ok() {
        let current = Arc::clone(&mesh.borrow_and_update());
        let problems = current.problems.iter().filter(|problem| {
            !matches!(problem.reason, Reason::NetnsMissing | Reason::NetnsUnnamed | Reason::HostNetwork)
        });
        let now: BTreeSet<String> = problems.map(ToString::to_string).collect();
        for problem in now.difference(&told) {
            tracing::warn!("{problem}");
        }
        told = now;
    }
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
        let names = names(&args).unwrap();
        assert_eq!(names.identity.to_string(), "spiffe://cluster.local/ns/mesh-system/sa/mesh-agent-ca");
        assert!(names.hosts.contains(&"localhost".to_owned()) && names.hosts.contains(&"::1".to_owned()));
    }

    #[test]
    fn names_are_those_that_were_given() {
        let given = names(&parse(&["--name", "ca.example,10.0.0.1"]).unwrap()).unwrap();
        assert_eq!(given.hosts, ["ca.example", "10.0.0.1"]);
        let error = names(&parse(&["--account", "ca"]).unwrap()).unwrap_err().to_string();
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
