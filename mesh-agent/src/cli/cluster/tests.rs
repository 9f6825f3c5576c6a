use super::{
    ask::Answers,
    report::{Says, Seen, report},
    view,
};
use crate::{
    cli::output::text::Paint,
    kubernetes::{
        cluster::{AgentPod, AgentSet, NamespaceSeen, NodeSeen, PodSeen},
        writeback::PodStatus,
    },
    model::Status,
};

fn node(name: &str) -> NodeSeen {
    NodeSeen { name: name.to_owned(), ready: true }
}

fn agent(node: &str) -> AgentPod {
    let name = format!("mesh-agent-{node}");
    AgentPod { namespace: "mesh-system".to_owned(), name, node: node.to_owned(), ready: true, terminating: false }
}

fn pod(name: &str, node: &str, annotation: Option<&str>) -> PodSeen {
    PodSeen {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        node: node.to_owned(),
        host_network: false,
        running: true,
        mesh: None,
        status: annotation.and_then(PodStatus::parse),
    }
}

const ARMED: &str = r#"{"state":"armed","mode":"permissive","since":"2026-11-22T10:00:00Z"}"#;
const FAILED: &str =
    r#"{"state":"failed","mode":"strict","since":"2026-11-22T10:00:00Z","reason":"arm_failed","message":"no slot"}"#;

/// What an agent says that has these pods: name, state, what is wrong.
fn status(version: &str, pods: &[(&str, &str, Option<&str>)]) -> Status {
    let counts = r#"{"open":0,"total":0,"failed":0,"to_upstream_bytes":0,"to_downstream_bytes":0}"#;
    let all: Vec<String> = pods
        .iter()
        .map(|(name, state, _)| {
            format!(
                r#"{{"name":{{"namespace":"shop","name":"{name}"}},"addresses":[],"enrolled":true,"state":"{state}",
                "mode":"permissive","outbound":{counts},"inbound":{counts},"direct_open":0,"direct_total":0,
                "direct_bytes":0,"captured":0,"passed":0,"bypassed":0,"refused":0,"unaccounted":0,"counters":{{}}}}"#
            )
        })
        .collect();
    let problems: Vec<String> = pods
        .iter()
        .filter_map(|(name, _, reason)| {
            let reason = (*reason)?;
            Some(format!(
                r#"{{"reason":"{reason}","severity":"error","location":{{"file":null,"line":0}},
                "object":"Pod shop/{name}","field":"","message":"because","remedy":""}}"#
            ))
        })
        .collect();
    let healthy = problems.is_empty();
    let text = format!(
        r#"{{"healthy":{healthy},"version":"{version}","pid":7,"uptime_seconds":60,"rss_bytes":4096,
            "node":{{"name":"n","zone":null,"addresses":[],"source":"kubernetes","source_age_ms":1250,"snapshot":3,
                    "direct":"on"}},
            "kernel":{{"release":"6.1.0","abi":9,"pins":"/sys/fs/bpf","hooks":[]}},
            "workers":[],"namespaces":[],"pods":[{}],"reasons":{{}},"problems":[{}]}}"#,
        all.join(","),
        problems.join(",")
    );
    serde_json::from_str(&text).unwrap()
}

fn seen(agents: Vec<(AgentPod, Result<Status, String>)>, pods: Vec<PodSeen>) -> Seen {
    let namespace = |name: &str, mesh: Option<&str>| NamespaceSeen {
        name: name.to_owned(),
        annotation: mesh.map(str::to_owned),
        mesh: mesh.map(str::to_owned),
    };
    let set = AgentSet { name: "mesh-system/mesh-agent".to_owned(), desired: 2, ready: 2, updated: 2 };
    Seen {
        nodes: vec![node("a"), node("b")],
        sets: vec![set],
        answers: Answers { agents, forbidden: None },
        namespaces: vec![namespace("shop", Some("enabled")), namespace("other", None)],
        pods,
        notes: Vec::new(),
    }
}

#[test]
fn all_is_well_where_every_agent_says_so() {
    let agents =
        vec![(agent("a"), Ok(status("0.1.0", &[("web-0", "armed", None)]))), (agent("b"), Ok(status("0.1.0", &[])))];
    let report = report(&seen(agents, vec![pod("web-0", "a", Some(ARMED))]));
    assert!(report.healthy, "{report:?}");
    assert_eq!(report.versions.len(), 1);
    assert_eq!((report.namespaces[0].pods, report.namespaces[0].armed), (1, 1));
    let text = view::render(&report, false, Paint::PLAIN);
    assert!(text.starts_with("mesh-agent 0.1.0, cluster  healthy"), "{text}");
    assert!(text.contains("NOT CAPTURED  none"), "{text}");
}

#[test]
fn agents_know_better_than_annotations() {
    let agents = vec![
        (agent("a"), Ok(status("0.1.0", &[("web-0", "failed", Some("arm_failed"))]))),
        (agent("b"), Ok(status("0.2.0", &[]))),
    ];
    let report = report(&seen(agents, vec![pod("web-0", "a", Some(ARMED))]));
    assert!(!report.healthy);
    let pod = &report.uncaptured[0];
    assert_eq!((pod.name.as_str(), pod.reason.as_str(), pod.message.as_str()), ("web-0", "arm_failed", "because"));
    assert_eq!(report.versions.len(), 2);
    let text = view::render(&report, false, Paint::PLAIN);
    assert!(text.contains("0.1.0 on 1, 0.2.0 on 1") && text.contains("shop/web-0"), "{text}");
}

#[test]
fn a_node_without_an_agent_is_ill_if_pods_on_it_are_enrolled() {
    let agents = || vec![(agent("a"), Ok(status("0.1.0", &[])))];
    let idle = report(&seen(agents(), Vec::new()));
    assert!(idle.healthy && idle.nodes[1].says == Says::Nobody, "{idle:?}");
    let busy = report(&seen(agents(), vec![pod("web-0", "b", None)]));
    assert!(!busy.healthy && !busy.nodes[1].healthy);
    assert_eq!(busy.uncaptured[0].reason, "unconfirmed");
}

#[test]
fn where_agents_cannot_be_asked_annotations_speak() {
    let refused = || Err("pods/portforward is forbidden".to_owned());
    let pods = vec![pod("web-0", "a", Some(ARMED)), pod("web-1", "b", Some(ARMED))];
    let mut fine = seen(vec![(agent("a"), refused()), (agent("b"), refused())], pods.clone());
    // An agent that does not answer although it may be asked is ill.
    let silent = report(&fine);
    assert!(!silent.healthy && silent.nodes[0].problems[0].contains("does not answer"), "{silent:?}");
    fine.answers.forbidden = Some("forbidden".to_owned());
    let by_annotation = report(&fine);
    assert!(by_annotation.healthy, "{by_annotation:?}");
    assert!(by_annotation.notes[0].contains("annotations"), "and says so: {:?}", by_annotation.notes);
    fine.pods.push(pod("web-2", "b", Some(FAILED)));
    fine.pods.push(PodSeen { host_network: true, ..pod("web-3", "b", None) });
    fine.pods.push(PodSeen { mesh: Some("disabled".to_owned()), ..pod("web-4", "b", None) });
    fine.pods.push(PodSeen { running: false, ..pod("web-5", "b", None) });
    let reasons: Vec<_> = report(&fine).uncaptured.into_iter().map(|pod| pod.reason).collect();
    assert_eq!(reasons, ["arm_failed", "host_network"]);
}
