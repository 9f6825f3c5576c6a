use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use clap::Parser;

use super::*;
use crate::{
    admin::server::{Server, Source},
    cli::{Cli, Command},
    model::{
        Audit, AuthorityStatus, CertificateSummary, Certificates, DrainingAgent, Explanation, HookStatus, KernelStatus,
        Location, Mode, NamespaceStatus, NodeStatus, ObjectName, PodState, PodStatus, Problem, Reason, RelayStatus,
        Severity, Shares, Volume, WorkerStatus,
    },
};

struct Canned(Status);

impl Source for Canned {
    async fn status(&self) -> Status {
        self.0.clone()
    }

    async fn audit(&self, _: u64) -> Audit {
        unreachable!("nobody asks for it here")
    }

    async fn explain(&self, _: String, _: String, _: u16) -> Result<Explanation, String> {
        unreachable!("nobody asks for it here")
    }

    fn certificates(&self) -> Certificates {
        Certificates::default()
    }

    fn waiting_for(&self) -> Vec<String> {
        Vec::new()
    }

    fn set_log_filter(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

fn args(run_dir: &Path, extra: &[&str]) -> Args {
    let line = ["mesh-agent", "status", "--run-dir", run_dir.to_str().unwrap()];
    match Cli::parse_from(line.iter().chain(extra)).command {
        Command::Status(args) => args,
        _ => unreachable!(),
    }
}

fn worker(worker: u32, accepted: u64, share: f64) -> WorkerStatus {
    WorkerStatus {
        worker,
        cpu: worker,
        open: accepted / 300,
        accepted,
        share,
        lag_us: 85,
        beat_age_ms: 40,
        peer_waits: 0,
    }
}

fn pod(namespace: &str, name: &str, state: PodState, relayed: u64, direct: u64) -> PodStatus {
    let captured = relayed + direct;
    PodStatus {
        name: ObjectName::new(namespace, name),
        addresses: vec!["10.0.0.7".parse().unwrap()],
        enrolled: state == PodState::Armed || state == PodState::Failed,
        state,
        mode: Mode::Permissive,
        default_mode: Mode::Permissive,
        ports: Vec::new(),
        shares: Shares::default(),
        outbound: RelayStatus {
            open: relayed / 100,
            total: relayed,
            failed: relayed / 1000,
            to_upstream_bytes: relayed * 700,
            to_downstream_bytes: relayed * 5000,
        },
        inbound: RelayStatus::default(),
        direct_open: direct / 200,
        direct_total: direct,
        direct_bytes: direct * 4000,
        captured,
        passed: captured / 500,
        bypassed: 0,
        refused: 0,
        unaccounted: 0,
        counters: BTreeMap::from([("out_seen".to_owned(), captured), ("in_seen".to_owned(), 0)]),
    }
}

fn healthy() -> Status {
    let hook = |program: &str| HookStatus { program: program.to_owned(), at: "/sys/fs/cgroup".to_owned(), armed: true };
    Status {
        healthy: true,
        version: "0.1.0".to_owned(),
        pid: 4121,
        uptime_seconds: 273_900,
        rss_bytes: 13_002_342,
        draining: Vec::new(),
        node: NodeStatus {
            name: "worker-1".to_owned(),
            zone: Some("eu-1a".to_owned()),
            addresses: vec!["192.0.2.10".parse().unwrap()],
            source: "manifests /etc/mesh-agent/manifests".to_owned(),
            source_age_ms: 1240,
            snapshot: 42,
            direct: "on".to_owned(),
            shares: Shares::default(),
            certificates: CertificateSummary::default(),
        },
        kernel: KernelStatus {
            release: "6.12.43+deb12-amd64".to_owned(),
            abi: 1,
            pins: "/sys/fs/bpf/mesh-agent".to_owned(),
            hooks: ["connect4", "connect6", "getpeername4", "getpeername6", "sock_ops", "sk_lookup"].map(hook).into(),
        },
        workers: vec![worker(0, 61_204, 0.51), worker(1, 58_800, 0.49)],
        namespaces: vec![
            NamespaceStatus { name: "kube-system".to_owned(), enrolled: false, pods: 1, armed: 0 },
            NamespaceStatus { name: "shop".to_owned(), enrolled: true, pods: 2, armed: 2 },
        ],
        pods: vec![
            pod("kube-system", "coredns-5dd5756b68-2xkqf", PodState::Off, 0, 0),
            pod("shop", "cart-7d9c5b8f4-x2k9p", PodState::Armed, 1_204, 118_796),
            PodStatus { mode: Mode::Strict, ..pod("shop", "payments-0", PodState::Armed, 9_000, 0) },
        ],
        reasons: BTreeMap::from([(Reason::Ok, 119_961), (Reason::UpstreamRefused, 43)]),
        authorizations: Vec::new(),
        problems: Vec::new(),
    }
}

fn unhealthy() -> Status {
    let mut status = healthy();
    status.healthy = false;
    status.kernel.hooks[5].armed = false;
    status.workers[1].beat_age_ms = 4_200;
    status.namespaces[1].armed = 1;
    status.pods[2].state = PodState::Failed;
    status.pods[1].bypassed = 3;
    status.pods[1].unaccounted = 1;
    status.problems = vec![
        problem(
            Reason::UnknownAnnotation,
            Severity::Warning,
            "Namespace lab",
            "metadata.annotations[mesh-agent.io/mesh]",
            "\"yes\" is neither enabled nor disabled",
        ),
        problem(
            Reason::NetnsMissing,
            Severity::Error,
            "Pod shop/payments-0",
            "metadata.annotations[mesh-agent.io/netns]",
            "/run/netns/payments-0 does not exist",
        ),
    ];
    status
}

fn problem(reason: Reason, severity: Severity, object: &str, field: &str, message: &str) -> Problem {
    let file = Some(Arc::new(PathBuf::from("/etc/mesh-agent/manifests/shop.yaml")));
    Problem {
        reason,
        severity,
        location: Location { file, line: 14 },
        object: object.to_owned(),
        field: field.to_owned(),
        message: message.to_owned(),
        remedy: reason.remedy().to_owned(),
    }
}

/// What the command prints about an agent with that status.
async fn shown(status: Status, extra: &[&str]) -> Report {
    let run_dir = tempfile::tempdir().unwrap();
    let server = Server::bind(run_dir.path()).unwrap();
    let serving = tokio::spawn(server.run(Arc::new(Canned(status))));
    let report = ask(&args(run_dir.path(), extra), Paint::PLAIN).await;
    serving.abort();
    report
}

#[tokio::test]
async fn a_healthy_agent() {
    let report = shown(healthy(), &[]).await;
    assert_eq!(report.out, HEALTHY);
    assert_eq!((report.err.as_str(), report.code), ("", 0));
}

#[tokio::test]
async fn relieved_agents_are_shown_with_what_they_have_left() {
    let mut status = healthy();
    let agent = |pid, version: &str, open| DrainingAgent { pid, version: version.to_owned(), open };
    status.draining = vec![agent(4007, "0.0.9", Some(3)), agent(3999, "", None)];
    let report = shown(status, &[]).await;
    assert!(report.out.contains("  draining pid 4007 0.0.9, 3 connections left\n"), "{}", report.out);
    assert!(report.out.contains("  draining pid 3999, it does not say"), "{}", report.out);
    assert_eq!(report.code, 0, "that is no trouble");
}

#[tokio::test]
async fn an_unhealthy_agent() {
    let report = shown(unhealthy(), &[]).await;
    assert_eq!(report.out, UNHEALTHY);
    assert_eq!((report.err.as_str(), report.code), ("", 1));
}

#[tokio::test]
async fn no_agent_says_where_it_looked_and_how_to_start_one() {
    let run_dir = tempfile::tempdir().unwrap();
    let report = ask(&args(run_dir.path(), &[]), Paint::PLAIN).await;
    assert_eq!((report.out.as_str(), report.code), ("", 2));
    let dir = run_dir.path().display();
    assert!(
        report
            .err
            .starts_with(&format!("mesh-agent: no agent answers on {dir}/admin.sock: the socket does not exist\n"))
    );
    assert!(report.err.contains(&format!("mesh-agent run --manifests DIR --run-dir {dir}\n")), "{}", report.err);
}

#[tokio::test]
async fn one_namespace_keeps_the_exit_code_of_all() {
    let report = shown(unhealthy(), &["-n", "lab"]).await;
    assert_eq!(report.code, 1);
    assert!(report.out.contains("PROBLEMS  1 warning; 1 more in other namespaces"), "{}", report.out);
    assert!(!report.out.contains("payments-0") && report.out.contains("Namespace lab"));
}

#[tokio::test]
async fn json_is_what_the_agent_said() {
    let report = shown(unhealthy(), &["-o", "json"]).await;
    assert_eq!(serde_json::from_str::<Status>(&report.out).unwrap(), unhealthy());
    assert_eq!(report.code, 1);
}

#[tokio::test]
async fn yaml_has_every_section() {
    let report = shown(unhealthy(), &["-o", "yaml"]).await;
    for line in ["healthy: false\n", "pods:\n", "    name: worker-1\n", "  upstream_refused: 43\n"] {
        assert!(report.out.contains(line.trim_start_matches(' ')), "{line}\n{}", report.out);
    }
}

#[tokio::test]
async fn wide_shows_hooks_reasons_both_directions_and_counters() {
    let report = shown(unhealthy(), &["-o", "wide"]).await;
    for text in
        ["HOOKS", "sk_lookup     missing", "10.0.0.7", "OUT UP", "IN DOWN", "upstream_refused", "out_seen=120,000"]
    {
        assert!(report.out.contains(text), "{text}\n{}", report.out);
    }
}

#[tokio::test]
async fn shares_modes_by_port_and_certificates_are_shown() {
    let mut status = healthy();
    let volume = |bytes| Volume { connections: 1, bytes };
    let shares = Shares { mutual: volume(5_000), local: volume(4_990), plaintext: volume(10) };
    status.node.shares = shares;
    status.pods[1].shares = shares;
    (status.pods[1].default_mode, status.pods[1].ports) =
        (Mode::Strict, vec![(8080, Mode::Permissive), (9090, Mode::Disabled)]);
    let authority = AuthorityStatus { description: "embedded".to_owned(), is_answering: false, last_error: None };
    status.node.certificates =
        CertificateSummary { authority: Some(authority), identities: 3, usable: 2, next_rotation_s: Some(7_300) };
    let report = shown(status.clone(), &["-o", "wide"]).await.out;
    for text in [
        "  traffic  9.8 KiB: 50% encrypted, 50% local, <1% plaintext\n",
        "  identity 2 of 3 with a certificate, next rotation in 2h 1m, authority embedded DOES NOT ANSWER\n",
        "strict, permissive 8080, disabled 9090",
        "50%    50%        <1%\n",
    ] {
        assert!(report.contains(text), "{text}\n{report}");
    }
    for line in shown(status, &[]).await.out.lines() {
        assert!(line.chars().count() <= 120, "{line}");
    }
}

#[tokio::test]
async fn the_table_fits_120_columns() {
    let report = shown(unhealthy(), &[]).await;
    for line in report.out.lines() {
        assert!(line.chars().count() <= 120, "{line}");
    }
}

const HEALTHY: &str = r"mesh-agent 0.1.0  healthy
  node     worker-1, zone eu-1a
  agent    pid 4121, up 3d 4h, RSS 12.4 MiB, direct on
  source   manifests /etc/mesh-agent/manifests, read without error 1.2 s ago, snapshot 42
  traffic  none carried yet
  exempt   node addresses exempt (health checks): 192.0.2.10
  kernel   6.12.43+deb12-amd64, ABI 1, pins /sys/fs/bpf/mesh-agent
  hooks    6 of 6 armed: connect4 connect6 getpeername4 getpeername6 sock_ops sk_lookup

WORKERS  the busiest took 1.02x its even share
  WORKER  CPU  OPEN  ACCEPTED  SHARE    LAG  LAST BEAT
       0    0   204    61,204    51%  85 us      40 ms
       1    1   196    58,800    49%  85 us      40 ms

NAMESPACES  1 of 2 enrolled
  NAMESPACE    MESH      PODS  ARMED
  kube-system  disabled     1      0
  shop         enabled      2      2

PODS  2 of 3 enrolled, 2 armed
  POD                                   STATE  OPEN    TOTAL  DIRECT     BYTES  CAPTURED  PASSED  REFUSED  UNACC
  kube-system/coredns-5dd5756b68-2xkqf  off
  shop/cart-7d9c5b8f4-x2k9p             armed   605  120,000     99%   460 MiB   120,000     240        0      0
  shop/payments-0                       armed    90    9,000      0%  48.9 MiB     9,000      18        0      0

PROBLEMS  none
";
const UNHEALTHY: &str = r#"mesh-agent 0.1.0  UNHEALTHY
  node     worker-1, zone eu-1a
  agent    pid 4121, up 3d 4h, RSS 12.4 MiB, direct on
  source   manifests /etc/mesh-agent/manifests, read without error 1.2 s ago, snapshot 42
  traffic  none carried yet
  exempt   node addresses exempt (health checks): 192.0.2.10
  kernel   6.12.43+deb12-amd64, ABI 1, pins /sys/fs/bpf/mesh-agent
  hooks    5 of 6 armed, MISSING: sk_lookup

WORKERS  the busiest took 1.02x its even share
  WORKER  CPU  OPEN  ACCEPTED  SHARE    LAG  LAST BEAT
       0    0   204    61,204    51%  85 us      40 ms
       1    1   196    58,800    49%  85 us      4.2 s

NAMESPACES  1 of 2 enrolled
  NAMESPACE    MESH      PODS  ARMED
  kube-system  disabled     1      0
  shop         enabled      2      1

PODS  2 of 3 enrolled, 1 armed
  POD                                   STATE   OPEN    TOTAL  DIRECT     BYTES  CAPTURED    PASSED  REFUSED  UNACC
  kube-system/coredns-5dd5756b68-2xkqf  off
  shop/cart-7d9c5b8f4-x2k9p             armed    605  120,000     99%   460 MiB   120,000  240 (3!)        0      1
  shop/payments-0                       FAILED    90    9,000      0%  48.9 MiB     9,000        18        0      0
  (n!) n of the passed connections should have been captured
  UNACC: handed over by the kernel, and not dealt with by the agent

PROBLEMS  1 error, 1 warning
  ✗ netns_missing  Pod shop/payments-0  metadata.annotations[mesh-agent.io/netns]
    at /etc/mesh-agent/manifests/shop.yaml:14
    /run/netns/payments-0 does not exist
    → Create it, or correct the annotation mesh-agent.io/netns.
  ‼ unknown_annotation  Namespace lab  metadata.annotations[mesh-agent.io/mesh]
    at /etc/mesh-agent/manifests/shop.yaml:14
    "yes" is neither enabled nor disabled
    → Use one of the values named in the message.
"#;
