//! `mesh-agent run`.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::ValueEnum;
use mesh_common::maps::MAX_WORKERS;

use super::{
    Bpffs, Cgroup, RunDir,
    authority::AuthorityArgs,
    duration, host,
    logging::{self, LogFormat},
    source::SourceArgs,
};
use crate::{
    admin::http,
    app::{self, Source},
    discovery::DEFAULT_ROOT_NAMESPACE,
    kubernetes::Access,
    model::{DEFAULT_TRUST_DOMAIN, is_trust_domain},
};

const EXAMPLES: &str = "\
Examples:
  mesh-agent run --manifests /etc/mesh-agent/manifests
  mesh-agent run --manifests ./pods --node-name worker-1 --direct=off --log mesh_agent=debug
  mesh-agent run --kubernetes --kubeconfig ~/.kube/config --context lab --node-name worker-1
  MESH_AGENT_MANIFESTS=/etc/mesh-agent/manifests MESH_AGENT_LOG_FORMAT=json mesh-agent run

SIGTERM and ctrl-C drain: no new connections, open ones may end until --drain-deadline.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// Name of this node: pods that name another one are remote [default: the host name]
    #[arg(long, value_name = "NAME", env = "MESH_AGENT_NODE_NAME")]
    node_name: Option<String>,
    /// Trust domain of all identities
    #[arg(long, value_name = "NAME", default_value = DEFAULT_TRUST_DOMAIN, value_parser = trust_domain, env = "MESH_AGENT_TRUST_DOMAIN")]
    trust_domain: String,
    /// Namespace whose policies are for the whole mesh
    #[arg(long, value_name = "NAME", default_value = DEFAULT_ROOT_NAMESPACE, env = "MESH_AGENT_ROOT_NAMESPACE")]
    root_namespace: String,
    /// Whether the kernel may connect pods of this node directly once a decision is known
    #[arg(long, value_name = "on|off", default_value = "on", hide_possible_values = true, env = "MESH_AGENT_DIRECT")]
    direct: Switch,
    #[command(flatten)]
    authority: AuthorityArgs,
    #[command(flatten)]
    run_dir: RunDir,
    /// Where /livez, /readyz and /metrics are served, and /v1/status to port-forwards; none for nowhere
    #[arg(long, value_name = "ADDRESS", default_value = http::DEFAULT_ADDRESS, env = "MESH_AGENT_HTTP_ADDRESS")]
    http_address: http::Address,
    #[command(flatten)]
    bpffs: Bpffs,
    #[command(flatten)]
    cgroup: Cgroup,
    /// Data threads, each pinned to a CPU [default: the number of CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_WORKERS)), env = "MESH_AGENT_WORKERS")]
    workers: Option<u32>,
    /// How long a server may take to accept a connection
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse_positive, env = "MESH_AGENT_CONNECT_TIMEOUT")]
    connect_timeout: Duration,
    /// How long open connections may go on after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse, env = "MESH_AGENT_DRAIN_DEADLINE")]
    drain_deadline: Duration,
    /// Once another agent has taken over and nothing is open, wait for SIGTERM instead of ending: where whoever started the agent would start it again
    #[arg(long, env = "MESH_AGENT_STAY")]
    stay: bool,
    /// Idle time before TCP keepalive probes on relayed connections; 0s for none
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration::parse, env = "MESH_AGENT_KEEPALIVE")]
    keepalive: Duration,
    /// A further address of this node, whose connections (probes) pass; repeatable
    #[arg(long, value_name = "IP", value_delimiter = ',', env = "MESH_AGENT_NODE_ADDRESS")]
    node_address: Vec<IpAddr>,
    /// How the log looks
    #[arg(long, value_name = "FORMAT", default_value = "text", env = "MESH_AGENT_LOG_FORMAT")]
    log_format: LogFormat,
    /// What is logged, e.g. info or mesh_agent::proxy=debug
    #[arg(long, value_name = "FILTER", default_value = "info", env = "MESH_AGENT_LOG")]
    log: String,
    /// eBPF programs to load instead of the built-in ones
    #[arg(long, value_name = "PATH", env = "MESH_AGENT_EBPF_OBJECT")]
    ebpf_object: Option<PathBuf>,
}

pub(super) fn trust_domain(text: &str) -> Result<String, String> {
    if is_trust_domain(text) {
        Ok(text.to_owned())
    } else {
        Err("a trust domain is made of lower case letters, digits, dots, dashes and underscores".to_owned())
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let set_log_filter = logging::init(args.log_format, &args.log)?;
    app::run(options(args, set_log_filter)?)
}

fn options(args: Args, set_log_filter: app::SetLogFilter) -> anyhow::Result<app::Options> {
    let node_name = match args.node_name {
        Some(name) => name,
        None => host::node_name().context("cannot read the host name; give --node-name")?,
    };
    let cgroup = match args.cgroup.cgroup {
        Some(cgroup) => cgroup,
        None => host::cgroup_mount()?.context(host::NO_CGROUP)?,
    };
    let workers = match args.workers {
        Some(workers) => workers as usize,
        None => std::thread::available_parallelism()
            .context("cannot count the CPUs; give --workers")?
            .get()
            .min(MAX_WORKERS as usize),
    };
    let source = args.source.choice()?;
    let access = match &source {
        Source::Kubernetes(access) => access.clone(),
        Source::Manifests(_) => Access::default(),
    };
    Ok(app::Options {
        authority: args.authority.choice(&args.run_dir.run_dir, access),
        source,
        node_name,
        trust_domain: args.trust_domain,
        root_namespace: args.root_namespace,
        direct: args.direct == Switch::On,
        run_dir: args.run_dir.run_dir,
        http_address: args.http_address,
        bpffs: args.bpffs.bpffs,
        cgroup,
        workers,
        connect_timeout: args.connect_timeout,
        drain_deadline: args.drain_deadline,
        stay: args.stay,
        keepalive: args.keepalive,
        node_addresses: args.node_address,
        ebpf_object: args.ebpf_object,
        set_log_filter,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(extra: &[&str]) -> Result<app::Options, clap::Error> {
        let line = ["mesh-agent", "run", "--manifests", "/m", "--node-name", "n1", "--cgroup", "/c"];
        match Cli::try_parse_from(line.iter().chain(extra))?.command {
            Command::Run(args) => Ok(options(*args, Arc::new(|_| Ok(()))).unwrap()),
            _ => unreachable!(),
        }
    }

    #[test]
    fn defaults() {
        let options = parse(&[]).unwrap();
        assert!(options.direct);
        assert_eq!(options.connect_timeout, Duration::from_secs(10));
        assert_eq!(options.drain_deadline, Duration::from_secs(30));
        assert_eq!(options.run_dir, PathBuf::from("/run/mesh-agent"));
        assert_eq!(options.bpffs, PathBuf::from("/sys/fs/bpf"));
        assert_eq!(options.http_address.to_string(), "[::]:15020");
        assert!(options.workers >= 1 && options.workers <= MAX_WORKERS as usize);
    }

    #[test]
    fn flags() {
        let options = parse(&[
            "--direct=off",
            "--workers",
            "3",
            "--connect-timeout",
            "500ms",
            "--node-address",
            "10.0.0.1",
            "--node-address",
            "fd00::1",
        ])
        .unwrap();
        assert!(!options.direct);
        assert_eq!(options.workers, 3);
        assert_eq!(options.connect_timeout, Duration::from_millis(500));
        assert_eq!(options.node_addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    }

    #[test]
    fn the_authority_is_the_agents_own_unless_another_is_named() {
        use crate::ca::{Choice, IstioConfig};

        let choice = |extra: &[&str]| parse(extra).map(|options| options.authority);
        let embedded =
            |folder: &str, seconds| Choice::Embedded { folder: folder.into(), lifetime: Duration::from_secs(seconds) };
        assert_eq!(choice(&[]).unwrap(), embedded("/run/mesh-agent/ca", 24 * 60 * 60));
        assert_eq!(choice(&["--ca-root", "/r", "--certificate-lifetime", "10s"]).unwrap(), embedded("/r", 10));
        let istio = IstioConfig {
            address: "ca:15012".into(),
            name: None,
            bundle: "/b".into(),
            token: Some("/t".into()),
            service: None,
        };
        let flags = ["--ca-address", "ca:15012", "--ca-bundle", "/b", "--ca-token", "/t"];
        assert_eq!(choice(&flags).unwrap(), Choice::Istio(istio));
        let in_cluster = choice(&["--ca-address", "ca.mesh-system.svc:15012", "--ca-bundle", "/b"]).unwrap();
        assert!(matches!(in_cluster, Choice::Istio(IstioConfig { service: Some(_), .. })), "{in_cluster:?}");
        let socket = ["--spiffe-endpoint-socket", "unix:///s"];
        assert_eq!(choice(&socket).unwrap(), Choice::Spire("unix:///s".into()));
        assert!(choice(&["--ca-address", "ca:15012"]).unwrap_err().to_string().contains("--ca-bundle"));
        assert!(choice(&["--ca-token", "/t"]).unwrap_err().to_string().contains("--ca-address"));
        assert!(choice(&[&flags[..], &socket].concat()).is_err());
        assert!(choice(&[&flags[..], &["--ca-root", "/r"]].concat()).is_err());
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        for (flag, value) in [
            ("--workers", "0"),
            ("--workers", "65"),
            ("--connect-timeout", "0s"),
            ("--drain-deadline", "30"),
            ("--direct", "maybe"),
            ("--trust-domain", "A.b"),
            ("--certificate-lifetime", "9999ms"),
            ("--node-address", "10.0.0"),
            ("--http-address", "15020"),
        ] {
            let error = parse(&[flag, value]).err().unwrap().to_string();
            assert!(error.contains(flag) && error.contains(value), "{error}");
        }
    }
}
