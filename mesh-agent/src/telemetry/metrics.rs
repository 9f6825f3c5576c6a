//! The agent's metrics: names, meanings, and how they follow from its status. docs/METRICS.md says the same for people;
//! a test compares.
//!
//! Cardinality: per pod of this node some fifty series, per worker four, per service account of this node two; nothing
//! is labelled by a peer, an address or a port.

use super::{
    Direction, Exposition, Family, Format,
    exposition::Kind::{Counter, Gauge},
};
use crate::model::{
    CertificateState, Certificates, PodState, PodStatus, RelayStatus, Severity, Status, Transport, Volume,
};

const POD: [&str; 2] = ["workload_namespace", "workload_pod"];

/// The kernel's counters that are verdicts on single connections.
const VERDICTS: [&str; 19] = [
    "out_redirected",
    "out_direct",
    "out_excluded",
    "out_passed_unavailable",
    "out_refused_unavailable",
    "out_passed_unarmed",
    "out_refused_unarmed",
    "out_passed_unredirectable",
    "out_no_address",
    "out_refused_unredirectable",
    "out_refused_upstream",
    "in_redirected",
    "in_direct",
    "in_relayed",
    "in_node",
    "in_excluded",
    "in_passed_unavailable",
    "in_refused_unavailable",
    "no_memory",
];

const STATES: [(PodState, &str); 5] = [
    (PodState::Off, "off"),
    (PodState::Waiting, "waiting"),
    (PodState::Armed, "armed"),
    (PodState::Draining, "draining"),
    (PodState::Failed, "failed"),
];

const CERTIFICATE_STATES: [(CertificateState, &str); 4] = [
    (CertificateState::Valid, "valid"),
    (CertificateState::Missing, "missing"),
    (CertificateState::Expired, "expired"),
    (CertificateState::TrustUnknown, "trust_unknown"),
];

macro_rules! families {
    ($($constant:ident $name:literal $kind:ident [$($label:expr),*] $help:literal;)+) => {
        $(static $constant: Family = Family { name: $name, kind: $kind, help: $help, labels: &[$($label),*] };)+

        /// Every family, in the order in which they are written.
        pub static FAMILIES: &[&Family] = &[$(&$constant),+];
    };
}

families! {
    BUILD "mesh_agent_build_info" Gauge ["version", "abi"] "Which agent this is; always 1.";
    STARTED "process_start_time_seconds" Gauge [] "When the process started, seconds since 1970.";
    MEMORY "process_resident_memory_bytes" Gauge [] "Resident memory of the process.";
    HEALTHY "mesh_agent_healthy" Gauge [] "Whether mesh-agent status says healthy: 1, or 0.";
    PROBLEMS "mesh_agent_problems" Gauge ["reason", "severity"] "Problems that mesh-agent status shows now.";
    HOOKS "mesh_agent_hook_attached" Gauge ["program"] "Whether a program is attached: 1, or 0.";
    SOURCE_AGE "mesh_agent_source_age_seconds" Gauge [] "Time since the source was last read without error.";
    SNAPSHOTS "mesh_agent_snapshots_total" Counter [] "Changes of the configuration that were put in force.";
    NAMESPACES "mesh_agent_namespaces_enrolled" Gauge [] "Enrolled namespaces that the agent knows of.";
    PODS "mesh_agent_pods" Gauge ["state"] "Pods of this node by how far they are in the mesh.";
    WORKER_OPEN "mesh_worker_connections_open" Gauge ["worker"] "Relayed connections that are open.";
    WORKER_ACCEPTED "mesh_worker_connections_total" Counter ["worker"] "Connections that a worker took.";
    WORKER_LAG "mesh_worker_lag_seconds" Gauge ["worker"] "How late the worker's event loop was at its last beat.";
    WORKER_BEAT "mesh_worker_beat_age_seconds" Gauge ["worker"] "Time since the worker's last beat.";
    WORKER_PEER_WAITS "mesh_worker_peer_waits_total" Counter ["worker"] "Connections that waited for the agent of another node.";
    ENDED "mesh_connections_ended_total" Counter ["reason"] "Relayed connections that ended, by reason code.";
    AUTHORIZATIONS "mesh_authorizations_total" Counter ["outcome", "reason"] "Connections that policies refused, ended or noted.";
    AUTHORITY "mesh_authority_answering" Gauge [] "Whether the certificate authority answered when it was last asked: 1, or 0.";
    CERTIFICATES "mesh_certificates" Gauge ["state"] "Identities of workloads of this node, by the state of their certificate.";
    EXPIRY "mesh_certificate_expiry_timestamp_seconds" Gauge ["workload_namespace", "service_account"] "Until when a certificate is valid, seconds since 1970.";
    RENEWALS_FAILED "mesh_certificate_renewal_failures" Gauge ["workload_namespace", "service_account"] "Requests for a certificate that failed in a row.";
    CONNECTIONS "mesh_pod_connections_total" Counter [POD[0], POD[1], "verdict"] "What the kernel did with a pod's connections, by verdict.";
    RELAYED "mesh_pod_relayed_connections_total" Counter [POD[0], POD[1], "direction"] "Relayed connections.";
    RELAYED_FAILED "mesh_pod_relayed_connections_failed_total" Counter [POD[0], POD[1], "direction"] "Relayed connections that ended with a reason other than ok.";
    RELAYED_OPEN "mesh_pod_relayed_connections_open" Gauge [POD[0], POD[1], "direction"] "Relayed connections that are open.";
    RELAYED_BYTES "mesh_pod_relayed_bytes_total" Counter [POD[0], POD[1], "direction", "to"] "Bytes of relayed connections, by where they went.";
    DIRECT_OPEN "mesh_pod_direct_connections_open" Gauge [POD[0], POD[1]] "Direct connections that the pod opened and that are open.";
    TRANSPORT_CONNECTIONS "mesh_pod_transport_connections_total" Counter [POD[0], POD[1], "transport"] "Connections by how their bytes went.";
    TRANSPORT_BYTES "mesh_pod_transport_bytes_total" Counter [POD[0], POD[1], "transport"] "Bytes by how they went; of direct connections when they are closed.";
    UNACCOUNTED "mesh_pod_unaccounted_connections" Gauge [POD[0], POD[1]] "Connections that the kernel handed over and the agent did not deal with; anything but 0 is a fault.";
}

/// All metrics, as text. `now` is Unix seconds.
pub fn write(format: Format, status: &Status, certificates: &Certificates, now: u64) -> String {
    let mut out = Exposition::new(format);
    agent(&mut out, status, now);
    workers(&mut out, status);
    endings(&mut out, status);
    self::certificates(&mut out, certificates);
    pods(&mut out, &status.pods);
    out.finish()
}

fn agent(out: &mut Exposition, status: &Status, now: u64) {
    out.family(&BUILD).add(&[&status.version, &status.kernel.abi.to_string()], 1.0);
    out.family(&STARTED).count(&[], now.saturating_sub(status.uptime_seconds));
    out.family(&MEMORY).count(&[], status.rss_bytes);
    out.family(&HEALTHY).count(&[], status.healthy.into());
    let mut problems = std::collections::BTreeMap::<_, u64>::new();
    for problem in &status.problems {
        *problems.entry((problem.reason, problem.severity)).or_default() += 1;
    }
    let mut samples = out.family(&PROBLEMS);
    for ((reason, severity), count) in problems {
        let severity = if severity == Severity::Error { "error" } else { "warning" };
        samples.count(&[reason.code(), severity], count);
    }
    let mut samples = out.family(&HOOKS);
    for hook in &status.kernel.hooks {
        samples.count(&[&hook.program], hook.armed.into());
    }
    out.family(&SOURCE_AGE).add(&[], status.node.source_age_ms as f64 / 1e3);
    out.family(&SNAPSHOTS).count(&[], status.node.snapshot);
    let enrolled = status.namespaces.iter().filter(|namespace| namespace.enrolled).count();
    out.family(&NAMESPACES).count(&[], enrolled as u64);
    let mut samples = out.family(&PODS);
    for (state, name) in STATES {
        let count = status.pods.iter().filter(|pod| pod.state == state).count();
        samples.count(&[name], count as u64);
    }
}

fn workers(out: &mut Exposition, status: &Status) {
    let named = || status.workers.iter().map(|worker| (worker.worker.to_string(), worker));
    let mut samples = out.family(&WORKER_OPEN);
    named().for_each(|(name, worker)| samples.count(&[&name], worker.open));
    let mut samples = out.family(&WORKER_ACCEPTED);
    named().for_each(|(name, worker)| samples.count(&[&name], worker.accepted));
    let mut samples = out.family(&WORKER_LAG);
    named().for_each(|(name, worker)| samples.add(&[&name], worker.lag_us as f64 / 1e6));
    let mut samples = out.family(&WORKER_BEAT);
    named().for_each(|(name, worker)| samples.add(&[&name], worker.beat_age_ms as f64 / 1e3));
    let mut samples = out.family(&WORKER_PEER_WAITS);
    named().for_each(|(name, worker)| samples.count(&[&name], worker.peer_waits));
}

fn endings(out: &mut Exposition, status: &Status) {
    let mut samples = out.family(&ENDED);
    for (reason, count) in &status.reasons {
        samples.count(&[reason.code()], *count);
    }
    let mut verdicts = std::collections::BTreeMap::<_, u64>::new();
    for row in &status.authorizations {
        *verdicts.entry((row.verdict.outcome, row.verdict.reason)).or_default() += row.count;
    }
    let mut samples = out.family(&AUTHORIZATIONS);
    for ((outcome, reason), count) in verdicts {
        samples.count(&[outcome.name(), reason.code()], count);
    }
}

fn certificates(out: &mut Exposition, certificates: &Certificates) {
    let mut samples = out.family(&AUTHORITY);
    if let Some(authority) = &certificates.authority {
        samples.count(&[], authority.is_answering.into());
    }
    let all = &certificates.certificates;
    let mut samples = out.family(&CERTIFICATES);
    for (state, name) in CERTIFICATE_STATES {
        let count = all.iter().filter(|certificate| certificate.state == state).count();
        samples.count(&[name], count as u64);
    }
    let mut samples = out.family(&EXPIRY);
    for (certificate, expires) in all.iter().filter_map(|certificate| Some((certificate, certificate.expires?))) {
        samples.count(&[&certificate.identity.namespace, &certificate.identity.service_account], expires);
    }
    let mut samples = out.family(&RENEWALS_FAILED);
    for certificate in all {
        let failures = certificate.refusal.as_ref().map_or(0, |refusal| refusal.attempts);
        samples.count(&[&certificate.identity.namespace, &certificate.identity.service_account], failures.into());
    }
}

fn pods(out: &mut Exposition, pods: &[PodStatus]) {
    // Of pods that are not in the mesh nothing is counted.
    let pods: Vec<&PodStatus> = pods.iter().filter(|pod| pod.state != PodState::Off).collect();
    let name = |pod: &PodStatus| [pod.name.namespace.to_string(), pod.name.name.to_string()];
    let mut samples = out.family(&CONNECTIONS);
    for pod in &pods {
        let [namespace, own] = &name(pod);
        for verdict in VERDICTS {
            samples.count(&[namespace, own, verdict], pod.counters.get(verdict).copied().unwrap_or(0));
        }
    }
    let relayed = |out: &mut Exposition, family, number: fn(&RelayStatus) -> u64| {
        let mut samples = out.family(family);
        for pod in &pods {
            let [namespace, own] = &name(pod);
            samples.count(&[namespace, own, Direction::Outbound.name()], number(&pod.outbound));
            samples.count(&[namespace, own, Direction::Inbound.name()], number(&pod.inbound));
        }
    };
    relayed(out, &RELAYED, |relayed| relayed.total);
    relayed(out, &RELAYED_FAILED, |relayed| relayed.failed);
    relayed(out, &RELAYED_OPEN, |relayed| relayed.open);
    let mut samples = out.family(&RELAYED_BYTES);
    for pod in &pods {
        let [namespace, own] = &name(pod);
        for (direction, relayed) in [(Direction::Outbound, &pod.outbound), (Direction::Inbound, &pod.inbound)] {
            samples.count(&[namespace, own, direction.name(), "upstream"], relayed.to_upstream_bytes);
            samples.count(&[namespace, own, direction.name(), "downstream"], relayed.to_downstream_bytes);
        }
    }
    let mut samples = out.family(&DIRECT_OPEN);
    for pod in &pods {
        let [namespace, own] = &name(pod);
        samples.count(&[namespace, own], pod.direct_open);
    }
    let transports = |out: &mut Exposition, family, number: fn(&Volume) -> u64| {
        let mut samples = out.family(family);
        for pod in &pods {
            let [namespace, own] = &name(pod);
            let shares = &pod.shares;
            for (transport, volume) in [(Transport::Local, &shares.local), (Transport::Mutual, &shares.mutual)] {
                samples.count(&[namespace, own, transport.name()], number(volume));
            }
            samples.count(&[namespace, own, "plaintext"], number(&shares.plaintext));
        }
    };
    transports(out, &TRANSPORT_CONNECTIONS, |volume| volume.connections);
    transports(out, &TRANSPORT_BYTES, |volume| volume.bytes);
    let mut samples = out.family(&UNACCOUNTED);
    for pod in &pods {
        let [namespace, own] = &name(pod);
        samples.count(&[namespace, own], pod.unaccounted);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{Mode, NamespaceStatus, ObjectName, Reason, Shares, WorkerStatus};

    fn status() -> Status {
        let counters = [("out_redirected".to_owned(), 7), ("in_seen".to_owned(), 9)].into();
        let pod = PodStatus {
            name: ObjectName::new("shop", "web-0"),
            addresses: Vec::new(),
            enrolled: true,
            state: PodState::Armed,
            mode: Mode::Permissive,
            default_mode: Mode::Permissive,
            ports: Vec::new(),
            shares: Shares { mutual: Volume { connections: 2, bytes: 300 }, ..Shares::default() },
            outbound: RelayStatus { total: 5, failed: 1, to_upstream_bytes: 10, ..RelayStatus::default() },
            inbound: RelayStatus::default(),
            direct_open: 4,
            direct_total: 4,
            direct_bytes: 0,
            captured: 7,
            passed: 0,
            bypassed: 0,
            refused: 0,
            unaccounted: 0,
            counters,
        };
        let worker = WorkerStatus {
            worker: 0,
            cpu: 3,
            open: 1,
            accepted: 6,
            share: 1.0,
            lag_us: 1500,
            beat_age_ms: 90,
            peer_waits: 0,
        };
        let text = r#"{"healthy":true,"version":"1.2.3","pid":7,"uptime_seconds":60,"rss_bytes":4096,
            "node":{"name":"n","zone":null,"addresses":[],"source":"manifests /m","source_age_ms":1250,"snapshot":3,
                    "direct":"on"},
            "kernel":{"release":"6.1.0","abi":9,"pins":"/sys/fs/bpf",
                      "hooks":[{"program":"connect4","at":"/","armed":true}]},
            "workers":[],"namespaces":[],"pods":[],"reasons":{},"problems":[]}"#;
        Status {
            workers: vec![worker],
            namespaces: vec![NamespaceStatus { name: "shop".to_owned(), enrolled: true, pods: 1, armed: 1 }],
            pods: vec![PodStatus { name: ObjectName::new("shop", "off"), state: PodState::Off, ..pod.clone() }, pod],
            reasons: BTreeMap::from([(Reason::Ok, 4), (Reason::UpstreamRefused, 1)]),
            ..serde_json::from_str(text).unwrap()
        }
    }

    #[test]
    fn what_the_status_says_is_in_the_metrics() {
        let text = write(Format::Prometheus, &status(), &Certificates::default(), 1000);
        for line in [
            "mesh_agent_build_info{version=\"1.2.3\",abi=\"9\"} 1",
            "process_start_time_seconds 940",
            "mesh_agent_source_age_seconds 1.25",
            "mesh_agent_hook_attached{program=\"connect4\"} 1",
            "mesh_agent_pods{state=\"armed\"} 1",
            "mesh_worker_lag_seconds{worker=\"0\"} 0.0015",
            "mesh_connections_ended_total{reason=\"upstream_refused\"} 1",
            "mesh_pod_connections_total{workload_namespace=\"shop\",workload_pod=\"web-0\",verdict=\"out_redirected\"} 7",
            "mesh_pod_relayed_connections_failed_total{workload_namespace=\"shop\",workload_pod=\"web-0\",direction=\"outbound\"} 1",
            "mesh_pod_transport_bytes_total{workload_namespace=\"shop\",workload_pod=\"web-0\",transport=\"mutual\"} 300",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("workload_pod=\"off\""), "nothing of pods that are not in the mesh");
    }

    #[test]
    fn every_family_is_served_once_and_named_as_is_the_custom() {
        let text = write(Format::Prometheus, &status(), &Certificates::default(), 0);
        for family in FAMILIES {
            assert_eq!(text.matches(&format!("# TYPE {} ", family.name)).count(), 1, "{}", family.name);
            assert_eq!(family.name.ends_with("_total"), family.kind == Counter, "{}", family.name);
            assert!(family.help.ends_with('.') && !family.help.contains(['\n', '\\']), "{}", family.name);
        }
        assert_eq!(text.matches("# TYPE ").count(), FAMILIES.len());
    }

    #[test]
    fn what_is_documented_is_served_and_the_other_way_round() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/METRICS.md");
        let document = std::fs::read_to_string(path).unwrap();
        let mut documented: Vec<Vec<&str>> = document
            .lines()
            .filter(|line| line.starts_with("| `mesh_") || line.starts_with("| `process_"))
            .filter(|line| !line.contains("mesh_ca_"))
            .map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`')).skip(1).take(3).collect())
            .filter(|row: &Vec<_>| row.get(1).is_some_and(|kind| ["counter", "gauge"].contains(kind)))
            .collect();
        let kind = |kind| if kind == Counter { "counter" } else { "gauge" };
        let labels: Vec<String> = FAMILIES.iter().map(|family| family.labels.join(" ")).collect();
        let mut served: Vec<Vec<&str>> =
            FAMILIES.iter().zip(&labels).map(|(family, labels)| vec![family.name, kind(family.kind), labels]).collect();
        documented.sort_unstable();
        served.sort_unstable();
        assert_eq!(documented, served);
    }

    #[test]
    fn verdicts_are_counters_of_the_kernel() {
        for verdict in VERDICTS {
            assert!(mesh_common::Counters::NAMES.contains(&verdict), "{verdict}");
        }
    }
}
