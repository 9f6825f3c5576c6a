use std::path::Path;

use clap::Parser;

use super::*;
use crate::{
    admin::server::{Server, Source},
    cli::{Cli, Command as Top, output::text::Paint},
    model::{
        Audit, AuthorityStatus, CertificateRefusal, CertificateState, CertificateStatus, Certificates, ChainLink,
        Coverage, Direction, Explanation, Interval, ObjectName, Peer, PlaintextFlow, PlaintextReason, PodState, Reason,
        Refused, Shares, Status, Unobserved, Volume,
    },
};

/// 2026-11-22 14:10:00 UTC.
const NOW: u64 = 1_795_356_600;

struct Canned;

impl Source for Canned {
    async fn status(&self) -> Status {
        unreachable!("nobody asks for it here")
    }

    async fn audit(&self, period: u64) -> Audit {
        Audit { since: NOW - period, ..audit() }
    }

    async fn explain(&self, source: String, _: String, _: u16) -> Result<Explanation, String> {
        Err(format!("there is no pod {source:?}; did you mean shop/cart?"))
    }

    fn certificates(&self) -> Certificates {
        certificates()
    }

    fn waiting_for(&self) -> Vec<String> {
        Vec::new()
    }

    fn set_log_filter(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

fn audit() -> Audit {
    let volume = |connections, bytes| Volume { connections, bytes };
    let pod = |name| ObjectName::new("shop", name);
    let flow = |name, peer, reason, from_pod_bytes| PlaintextFlow {
        direction: Direction::Outbound,
        pod: pod(name),
        pod_identity: Some("spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()),
        peer,
        peer_identity: None,
        port: 443,
        reason,
        connections: 12,
        open: 1,
        from_pod_bytes,
        to_pod_bytes: 2 * from_pod_bytes,
        first_seen: NOW - 3000,
        last_seen: NOW - 5,
    };
    let unknown = PlaintextReason::DestinationUnknown;
    Audit {
        node: "worker-1".to_owned(),
        version: "0.1.0".to_owned(),
        generated: NOW,
        since: NOW - 3600,
        agent_started: NOW - 2000,
        shares: Shares {
            mutual: volume(900, 7_000_000),
            local: volume(500, 2_000_000),
            plaintext: volume(24, 1_000_000),
        },
        flows: vec![
            flow("cart", Peer::Address("203.0.113.9".parse().unwrap()), unknown, 300_000),
            PlaintextFlow { port: 0, ..flow("cart", Peer::Others, unknown, 20_000) },
            PlaintextFlow {
                direction: Direction::Inbound,
                peer_identity: Some("spiffe://cluster.local/ns/legacy/sa/default".parse().unwrap()),
                ..flow("web", Peer::Pod(ObjectName::new("legacy", "<b>bold</b>")), PlaintextReason::SourceNotMeshed, 10)
            },
        ],
        summed_up: 7,
        unobserved: vec![
            Unobserved {
                direction: Direction::Outbound,
                pod: pod("cart"),
                reason: PlaintextReason::Excluded,
                connections: 42,
                before_start: false,
            },
            Unobserved {
                direction: Direction::Inbound,
                pod: pod("web"),
                reason: PlaintextReason::AgentUnavailable,
                connections: 3,
                before_start: true,
            },
        ],
        coverage: vec![
            Coverage {
                pod: pod("cart"),
                state: PodState::Armed,
                observed: vec![Interval { from: NOW - 2000, until: None }],
            },
            Coverage { pod: pod("off"), state: PodState::Off, observed: Vec::new() },
        ],
        refused: vec![Refused {
            direction: Direction::Inbound,
            pod: pod("web"),
            source_identity: None,
            source_address: Some("10.0.1.4".parse().unwrap()),
            destination: Peer::Pod(pod("web")),
            destination_identity: Some("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()),
            port: 8080,
            reason: Reason::PlaintextRefused,
            decided_by: Some("PeerAuthentication shop/default".to_owned()),
            count: 17,
            first_seen: NOW - 100,
            last_seen: NOW - 9,
        }],
    }
}

fn certificates() -> Certificates {
    let certificate = |name: &str, state| CertificateStatus {
        identity: format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap(),
        state,
        serial: Some("01:23:45:67:89:ab:cd:ef".to_owned()),
        issued: Some(NOW - 3600),
        expires: Some(NOW + 82_800),
        next_rotation: NOW + 40_000,
        chain: vec![ChainLink {
            subject: "CN=mesh root".to_owned(),
            fingerprint: "ab".repeat(32),
            issued: NOW - 7200,
            expires: NOW + 7200,
        }],
        refusal: None,
    };
    let missing = CertificateStatus {
        serial: None,
        issued: None,
        expires: None,
        next_rotation: NOW - 1,
        chain: Vec::new(),
        refusal: Some(CertificateRefusal {
            reason: Reason::CaUnreachable,
            message: "connection refused".to_owned(),
            attempts: 4,
        }),
        ..certificate("web", CertificateState::Missing)
    };
    Certificates {
        now: NOW,
        authority: Some(AuthorityStatus {
            description: "embedded".to_owned(),
            is_answering: false,
            last_error: Some("connection refused".to_owned()),
        }),
        certificates: vec![certificate("cart", CertificateState::Valid), missing],
    }
}

fn command(run_dir: &Path, line: &[&str]) -> Result<Command, clap::Error> {
    let words = ["mesh-agent", "policy"].iter().chain(line).copied();
    match Cli::try_parse_from(words.chain(["--run-dir", run_dir.to_str().unwrap()]))?.command {
        Top::Policy(args) => Ok(args.command),
        _ => unreachable!(),
    }
}

/// What the command prints about an agent with those answers.
async fn shown(line: &[&str]) -> Report {
    let run_dir = tempfile::tempdir().unwrap();
    let serving = tokio::spawn(Server::bind(run_dir.path()).unwrap().run(std::sync::Arc::new(Canned)));
    let report = match command(run_dir.path(), line).unwrap() {
        Command::Explain(args) => explain::report(&args).await,
        Command::Audit(args) => audit::report(&args).await,
        Command::Certificates(args) => certificates::report(&args).await,
    };
    serving.abort();
    report.unwrap()
}

#[tokio::test]
async fn the_audit_as_a_table_names_everything_once() {
    let report = shown(&["audit", "--no-color"]).await;
    assert_eq!((report.err.as_str(), report.code), ("", 0));
    assert_eq!(report.out, AUDIT);
}

#[tokio::test]
async fn the_period_is_the_one_that_was_asked_for() {
    let report = shown(&["audit", "--since", "10m", "-o", "json"]).await;
    let audit: Audit = serde_json::from_str(&report.out).unwrap();
    assert_eq!(audit, Audit { since: NOW - 600, ..self::audit() });
    for since in ["2h", "0s", "10", "soon"] {
        assert!(command(Path::new("/"), &["audit", "--since", since]).is_err(), "{since}");
    }
}

#[tokio::test]
async fn a_file_takes_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.html");
    let report = shown(&["audit", "-o", "html", "--output", file.to_str().unwrap()]).await;
    assert_eq!(report.out, "");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), html::page(&audit()));
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_runs_nothing() {
    let page = html::page(&audit());
    for forbidden in
        ["<script", "<link", "<img", "<iframe", "javascript:", "http://", "https://", "url(", "@import", " on"]
    {
        let found = page.match_indices(forbidden).find(|(at, _)| {
            // Words that begin with "on" are text; attributes are followed by `=`.
            let rest = &page[*at + forbidden.len()..];
            forbidden != " on" || rest.trim_start_matches(|c: char| c.is_ascii_alphabetic()).starts_with('=')
        });
        assert_eq!(found, None, "{forbidden}");
    }
}

#[test]
fn what_others_wrote_is_text_on_the_page() {
    let evil = "\"><script>alert(1)</script>'&\u{202e}\u{1b}";
    assert_eq!(html::escape(evil), "&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&#39;&amp;\u{fffd}\u{fffd}");
    let mut audit = audit();
    audit.node = evil.to_owned();
    audit.version = evil.to_owned();
    for flow in &mut audit.flows {
        flow.pod = ObjectName::new(evil, evil);
        flow.peer = Peer::Pod(ObjectName::new(evil, evil));
    }
    for row in &mut audit.unobserved {
        row.pod = ObjectName::new(evil, evil);
    }
    for pod in &mut audit.coverage {
        pod.pod = ObjectName::new(evil, evil);
    }
    for row in &mut audit.refused {
        (row.pod, row.destination) = (ObjectName::new(evil, evil), Peer::Pod(ObjectName::new(evil, evil)));
        row.decided_by = Some(evil.to_owned());
    }
    let page = html::page(&audit);
    assert!(!page.contains("<script") && !page.contains("alert(1)</s") && page.contains("&lt;script&gt;"), "{page}");
    // Every tag that is opened is one of ours.
    let ours = "!DOCTYPE html head meta title style body h1 h2 p dl dt dd svg rect table thead tbody tr th td span br wbr div code em";
    for tag in page.split('<').skip(1) {
        let name: String = tag.trim_start_matches('/').chars().take_while(|c| !" >/\n".contains(*c)).collect();
        assert!(ours.split(' ').any(|known| known == name), "<{name}");
    }
}

#[test]
fn a_page_never_looks_cleaner_than_the_truth() {
    let clean = Audit {
        flows: Vec::new(),
        unobserved: Vec::new(),
        agent_started: NOW - 4000,
        coverage: vec![audit().coverage[0].clone()],
        ..audit()
    };
    assert!(html::page(&clean).contains("class=\"verdict good\""));
    for (what, unclean) in [
        ("flows", Audit { flows: audit().flows, ..clean.clone() }),
        ("connections passed by the agent", Audit { unobserved: audit().unobserved, ..clean.clone() }),
        ("the agent did not run during all of it", Audit { agent_started: NOW - 10, ..clean.clone() }),
        ("not all pods of the node are in the mesh", Audit { coverage: audit().coverage, ..clean.clone() }),
    ] {
        let page = html::page(&unclean);
        assert!(!page.contains("verdict good"), "{what}");
        assert!(what == "flows" || page.contains(what), "{what}");
    }
}

#[tokio::test]
async fn certificates_say_who_cannot_prove_who_it_is() {
    let report = shown(&["certificates", "--no-color"]).await;
    assert_eq!(report.code, 1);
    assert_eq!(report.out, CERTIFICATES);
    let wide = shown(&["certificates", "-o", "wide", "--no-color"]).await.out;
    assert!(
        wide.contains("01:23:45:67:89:ab:cd:ef") && wide.contains(&format!("sha256 {}", "ab".repeat(32))),
        "{wide}"
    );
    let json = shown(&["certificates", "-o", "json"]).await.out;
    assert_eq!(serde_json::from_str::<Certificates>(&json).unwrap(), certificates());
    assert!(shown(&["certificates", "-o", "yaml"]).await.out.contains("state: missing"));
    assert!(certificates::table(&Certificates::default(), false, Paint::PLAIN).contains("no certificates"));
}

#[tokio::test]
async fn a_name_that_nobody_has_is_no_denial() {
    let report = shown(&["explain", "shop/crat", "shop/web", "80"]).await;
    assert_eq!(report.err, "mesh-agent: there is no pod \"shop/crat\"; did you mean shop/cart?\n");
    assert_eq!((report.out.as_str(), report.code), ("", 2));
    for port in ["0", "65536", "http"] {
        assert!(command(Path::new("/"), &["explain", "a/b", "c/d", port]).is_err(), "{port}");
    }
}

#[tokio::test]
async fn no_agent_is_no_answer() {
    let run_dir = tempfile::tempdir().unwrap();
    let Command::Audit(args) = command(run_dir.path(), &["audit"]).unwrap() else { unreachable!() };
    let report = audit::report(&args).await.unwrap();
    assert_eq!(report.code, 2);
    assert!(report.err.contains("no agent answers on"), "{}", report.err);
}

const MANIFESTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {mesh-agent.io/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, annotations: {mesh-agent.io/netns: cart}}
spec: {nodeName: one}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, annotations: {mesh-agent.io/netns: web, mesh-agent.io/mode: strict}}
spec: {nodeName: one}
status: {podIPs: [{ip: 10.0.0.2}]}
";

/// `policy explain` of those manifests, without an agent.
async fn offline(source: &str, destination: &str, extra: &[&str]) -> Report {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shop.yaml"), MANIFESTS).unwrap();
    let manifests = folder.path().to_str().unwrap();
    let line = ["explain", source, destination, "8080", "--no-color", "--node-name", "one", "--manifests", manifests];
    let line: Vec<&str> = line.iter().chain(extra).copied().collect();
    let Command::Explain(args) = command(folder.path(), &line).unwrap() else { unreachable!() };
    explain::report(&args).await.unwrap()
}

#[tokio::test]
async fn manifests_answer_without_an_agent() {
    let allowed = offline("shop/cart", "shop/web", &[]).await;
    assert_eq!((allowed.err.as_str(), allowed.code), ("", 0));
    assert_eq!(allowed.out, ALLOWED);
    let denied = offline("203.0.113.9", "shop/web", &[]).await;
    assert_eq!((denied.err.as_str(), denied.code), ("", 1));
    assert_eq!(denied.out, DENIED);
    let json = offline("203.0.113.9", "shop/web", &["-o", "json"]).await;
    let answer: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(answer["paths"][0]["plaintext_reason"], "source_unknown");
    assert_eq!(serde_json::from_str::<Explanation>(&json.out).unwrap().reason, Reason::PlaintextRefused);
    assert!(offline("203.0.113.9", "shop/web", &["-o", "yaml"]).await.out.contains("allowed: false"));
    let probe = offline("192.0.2.7", "shop/web", &["--node-address", "192.0.2.7"]).await;
    assert!(probe.code == 0 && probe.out.contains("untouched"), "{}", probe.out);
    let unknown = offline("shop/cart", "shop/wep", &[]).await;
    assert_eq!(unknown.code, 2);
    assert!(unknown.err.contains("did you mean shop/web"), "{}", unknown.err);
}

#[tokio::test]
async fn manifests_that_are_not_there_are_no_answer() {
    let line = ["explain", "shop/cart", "shop/web", "80", "--manifests", "/nowhere"];
    let Command::Explain(args) = command(Path::new("/"), &line).unwrap() else { unreachable!() };
    let report = explain::report(&args).await.unwrap();
    assert_eq!((report.code, report.err.as_str()), (2, "mesh-agent: /nowhere is not a folder\n"));
}

const AUDIT: &str = r"node worker-1
  period   2026-11-22 13:10:00 to 2026-11-22 14:10:00 UTC
  agent    mesh-agent 0.1.0, started 2026-11-22 13:36:40 UTC
  gap      no record from 13:10:00 to 13:36:40, before the agent started

SHARES  of what the mesh carried
  TRANSPORT  CONNECTIONS    BYTES  SHARE OF BYTES
  encrypted          900  6.7 MiB             70%
  local              500  1.9 MiB             20%
  plaintext           24  977 KiB             10%

PLAINTEXT  across the node's edge; bytes as seen from the pod
  POD              PEER                PORT  CONNECTIONS  OPEN      SENT  RECEIVED  LAST SEEN  REASON
  shop/cart  to    203.0.113.9          443           12     1   293 KiB   586 KiB  14:09:55   destination_unknown
  shop/cart  to    (others)               *           12     1  19.5 KiB  39.1 KiB  14:09:55   destination_unknown
  shop/web   from  legacy/<b>bold</b>   443           12     1      10 B      20 B  14:09:55   source_not_meshed
  destination_unknown: The destination is no pod or service that the mesh knows of, such as a server outside.
  source_not_meshed: The caller is a pod that is not enrolled in the mesh.
  7 connections were summed up as (others): too many peers to tell apart

NOT OBSERVED  connections that passed by the agent; their bytes are unknown
  POD        DIRECTION  CONNECTIONS  WHEN                      REASON
  shop/cart  outbound            42  in the period             excluded
  shop/web   inbound              3  before the agent started  agent_unavailable
  excluded: An annotation exempts this port or address block from the mesh.
  agent_unavailable: No agent answered, and the pod's mode lets connections pass then.

COVERAGE  TCP of these pods; other protocols are not observed
  POD        STATE            OBSERVED
  shop/cart  in the mesh      13:36:40 to 14:10:00
  shop/off   not in the mesh  never: nothing is known

REFUSED  for want of permission, since the agent started
  SOURCE   FROM      DESTINATION  PORT  COUNT  LAST SEEN  REASON             DECIDED BY
  unknown  10.0.1.4  shop/web     8080     17  14:09:51   plaintext_refused  PeerAuthentication shop/default
";
const CERTIFICATES: &str = r"authority embedded: DOES NOT ANSWER
  connection refused
IDENTITY                                STATE    SERIAL             ISSUED (UTC)         EXPIRES (UTC)        NEXT ROTATION
spiffe://cluster.local/ns/shop/sa/cart  valid    01:23:45:67:89:ab  2026-11-22 13:10:00  2026-11-23 13:10:00  in 11h 6m
spiffe://cluster.local/ns/shop/sa/web   MISSING  -                  -                    -                    due

spiffe://cluster.local/ns/shop/sa/web
  last request failed (4 in a row): ca_unreachable: connection refused
";
const ALLOWED: &str = r"ALLOWED
  from  Pod shop/cart (10.0.0.1), in the mesh, on one
        spiffe://cluster.local/ns/shop/sa/default
  to    Pod shop/web (10.0.0.2), port 8080, in the mesh, on one
        spiffe://cluster.local/ns/shop/sa/default

ENDPOINTS
  ENDPOINT      ADDRESS        NODE  MODE    VERDICT  DECIDED BY  WAY     TRANSPORT
  Pod shop/web  10.0.0.2:8080  one   strict  allowed  -           direct  local
  direct: both ends are enrolled pods of one node; the first connection is relayed
";
const DENIED: &str = r"DENIED  plaintext_refused: A strict workload was called in plaintext by somebody who is not in the mesh.
  from  203.0.113.9
  to    Pod shop/web (10.0.0.2), port 8080, in the mesh, on one
        spiffe://cluster.local/ns/shop/sa/default
  note  the source's end is not governed: The caller is no pod that the mesh knows of, such as a client outside.

ENDPOINTS
  ENDPOINT      ADDRESS        NODE  MODE    VERDICT            DECIDED BY  WAY      TRANSPORT
  Pod shop/web  10.0.0.2:8080  one   strict  plaintext_refused  -           relayed  plaintext (source_unknown)
  plaintext (source_unknown): The caller is no pod that the mesh knows of, such as a client outside. Let
  clients outside speak TLS to the app, or set mode strict on the pod.
  plaintext_refused: Enrol the caller, or set mesh-agent.io/mode: permissive on the callee.
  relayed: the agent at the destination refuses it
";
