//! Bad manifests: what is wrong is told where, and the last good state stays in force.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use mesh_agent::model::{PodState, Problem, Reason};
use mesh_tests::{App, Pair, agent::kernel_tier, eventually, manifest, node::NAMESPACE, require, socket::round_trip};

/// Waits for a problem with this reason.
fn problem(pair: &Pair, reason: Reason) -> Problem {
    eventually(&format!("{reason} is told"), || {
        pair.agent.status().problems.into_iter().find(|problem| problem.reason == reason)
    })
}

/// The status command fails, and names all that is needed to mend it.
fn assert_told(pair: &Pair, parts: &[&str]) {
    let output = pair.agent.run(&["status", "--no-color"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in parts {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
}

fn assert_captured(pair: &Pair) {
    let before = pair.agent.settled("client").counters["out_redirected"];
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    assert_eq!(pair.agent.settled("client").counters["out_redirected"], before + 1);
}

/// Starts well, with an app on the server.
fn good() -> (Pair, App) {
    let pair = Pair::relayed();
    let app = App::echo(&pair.server, 8080);
    assert_captured(&pair);
    assert_eq!(pair.agent.run(&["status"]).status.code(), Some(0), "{:?}", pair.agent.status().problems);
    (pair, app)
}

/// Mends the manifests, and waits for the status to be well again.
fn assert_mended(pair: &Pair) {
    eventually("it is healthy", || pair.agent.status().healthy.then_some(()));
    assert_eq!(pair.agent.run(&["status"]).status.code(), Some(0));
    assert_captured(pair);
}

#[test]
fn a_malformed_file_leaves_the_last_good_state_in_force() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let (pair, _app) = good();
    let whole = manifest::namespace(NAMESPACE, &[("mesh", "enabled")]);
    pair.node.write("pods.yaml", &format!("{whole}apiVersion: v1\nkind: [Pod\n"));
    let problem = problem(&pair, Reason::BadYaml);
    assert!(problem.location.file.as_ref().is_some_and(|file| file.ends_with("pods.yaml")));
    assert!(problem.location.line >= 8, "{problem}");
    assert!(!problem.remedy.is_empty());
    assert_told(&pair, &["bad_yaml", "pods.yaml"]);
    assert_captured(&pair);
    pair.node.enrol(&[&pair.client, &pair.server]);
    assert_mended(&pair);
}

#[test]
fn an_unknown_annotation_value_is_never_off() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let (pair, _app) = good();
    pair.node.write_pods(&[("mesh", "off")], &[&pair.client, &pair.server]);
    let problem = problem(&pair, Reason::UnknownAnnotation);
    assert_eq!((problem.location.line, problem.object.as_str()), (6, "Namespace shop"));
    assert!(problem.field.contains("mesh-agent.io/mesh"), "{problem}");
    assert!(problem.message.contains("off"), "{problem}");
    assert!(problem.remedy.contains("enabled") && problem.remedy.contains("disabled"), "{problem}");
    assert_told(&pair, &["unknown_annotation", "pods.yaml:6", "Namespace shop", "mesh-agent.io/mesh", "off"]);
    assert_captured(&pair);
    pair.node.enrol(&[&pair.client, &pair.server]);
    assert_mended(&pair);
}

#[test]
fn a_duplicate_address_stays_with_its_first_pod() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let (pair, _app) = good();
    let thief = pair.node.pod("thief");
    let path = thief.namespace.path().display().to_string();
    pair.node
        .write("thief.yaml", &manifest::pod(NAMESPACE, "thief", &[pair.server.v4.into()], None, &[("netns", &path)]));
    let problem = problem(&pair, Reason::DuplicateAddress);
    assert!(problem.message.contains(&pair.server.v4.to_string()), "{problem}");
    assert_told(&pair, &["duplicate_address", "thief.yaml", &pair.server.v4.to_string()]);
    assert_captured(&pair);
    pair.node.remove("thief.yaml");
    assert_mended(&pair);
}

#[test]
fn a_missing_namespace_is_told_and_found_when_it_comes() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let (pair, _app) = good();
    let late = pair.node.pod("late");
    let link = pair.node.folder.path().join("late-netns");
    let annotations = [("netns", link.to_str().unwrap())];
    pair.node.write("late.yaml", &manifest::pod(NAMESPACE, "late", &late.addresses(), None, &annotations));
    let problem = problem(&pair, Reason::NetnsMissing);
    assert_eq!(problem.object, "Pod shop/late");
    assert!(problem.field.contains("mesh-agent.io/netns") && problem.location.line == 7, "{problem}");
    assert_told(&pair, &["netns_missing", "late.yaml:7", "shop/late", "late-netns"]);
    assert_eq!(pair.agent.pod("late").state, PodState::Failed);
    assert_captured(&pair);
    std::os::unix::fs::symlink(late.namespace.path(), &link).unwrap();
    pair.agent.await_state("late", PodState::Armed);
    round_trip(&late, pair.server.at(8080)).unwrap();
    assert_eq!(pair.agent.settled("late").outbound.total, 1);
    assert_mended(&pair);
}

#[test]
fn a_bad_pod_does_not_harm_its_neighbours_in_the_file() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let (pair, _app) = good();
    let extra = pair.node.pod("extra");
    let text = manifest::namespace(NAMESPACE, &[("mesh", "enabled")])
        + &pair.client.manifest(&[("exclude-outbound-ports", "eighty")])
        + &pair.server.manifest(&[])
        + &extra.manifest(&[]);
    pair.node.write("pods.yaml", &text);
    pair.agent.await_state("extra", PodState::Armed);
    let problem = problem(&pair, Reason::UnknownAnnotation);
    assert_eq!(problem.object, "Pod shop/client");
    assert!(problem.message.contains("eighty"), "{problem}");
    // The client's former version stays in force.
    assert_captured(&pair);
    round_trip(&extra, pair.server.at(8080)).unwrap();
    assert_eq!(pair.agent.settled("extra").outbound.total, 1);
}

#[test]
fn a_folder_that_vanishes_leaves_the_last_good_state_in_force() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let (pair, _app) = good();
    let aside = pair.node.folder.path().join("aside");
    std::fs::rename(pair.node.manifests(), &aside).unwrap();
    problem(&pair, Reason::SourceUnreadable);
    assert_told(&pair, &["source_unreadable", "manifests"]);
    assert_captured(&pair);
    std::fs::rename(&aside, pair.node.manifests()).unwrap();
    assert_mended(&pair);
}

#[test]
fn status_in_json_and_yaml_says_the_same() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let (pair, _app) = good();
    let json = pair.agent.run(&["status", "-o", "json"]);
    let status: mesh_agent::model::Status = serde_json::from_slice(&json.stdout).unwrap();
    assert!(status.healthy);
    assert_eq!(status.pods.len(), 2);
    assert!(status.kernel.hooks.iter().all(|hook| hook.armed));
    let yaml = pair.agent.run(&["status", "-o", "yaml"]);
    assert!(String::from_utf8_lossy(&yaml.stdout).contains("healthy: true"));
    let table = pair.agent.run(&["status", "-o", "wide"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("client"));
}

#[test]
fn status_without_an_agent_ends_with_2() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let (mut pair, _app) = good();
    pair.agent.terminate();
    pair.agent.wait(mesh_tests::wait::PATIENCE);
    let output = pair.agent.run(&["status"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no agent answers"));
}
