//! `mesh-agent status --cluster`, the tool itself on the test server.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod agents;

use agents::{ARMED, Fixture, status};
use mesh_tests::api::User;
use serde_json::{Value, json};

fn enrol(fixture: &Fixture) {
    let annotations = json!({"mesh-agent.io/mesh": "enabled"});
    fixture.server.put(
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "annotations": annotations}}),
    );
}

/// What it says as JSON, and its exit code.
fn ask(fixture: &Fixture) -> (Value, i32) {
    let done = fixture.run(&["status", "--cluster", "-o", "json"]);
    let report = serde_json::from_str(&done.out).unwrap_or_else(|_| panic!("{done:?}"));
    (report, done.code.unwrap())
}

#[test]
fn every_agent_is_asked_through_the_server() {
    let fixture = Fixture::new(&["a", "b"]);
    enrol(&fixture);
    fixture.pod("web", "a", Some(ARMED));
    fixture.agent("a", status("0.1.0", &[("web", "armed")]));
    fixture.agent("b", status("0.2.0", &[]));
    let (report, code) = ask(&fixture);
    assert_eq!((report["healthy"].as_bool(), code), (Some(true), 0), "{report:#}");
    assert_eq!(report["versions"], json!({"0.1.0": 1, "0.2.0": 1}));
    assert_eq!(report["nodes"][0]["says"], "agent");
    assert_eq!(report["namespaces"], json!([{"name": "shop", "pods": 1, "armed": 1}]));

    // As kubectl would call it.
    let folder = tempfile::tempdir().unwrap();
    let plugin = folder.path().join("kubectl-mesh");
    std::os::unix::fs::symlink(mesh_tests::agent::binary(), &plugin).unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, fixture.server.kubeconfig(fixture.server.admin())).unwrap();
    let output =
        std::process::Command::new(&plugin).arg("status").arg("--kubeconfig").arg(&kubeconfig).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("0.1.0 on 1, 0.2.0 on 1"), "{output:?}");
}

#[test]
fn who_is_missing_and_who_is_not_captured_is_named() {
    let fixture = Fixture::new(&["a", "b", "c"]);
    enrol(&fixture);
    fixture.pod("web-0", "a", Some(ARMED));
    fixture.pod("web-1", "b", None);
    fixture.pod("web-2", "c", Some(ARMED));
    fixture.agent("a", status("0.1.0", &[("web-0", "failed")]));
    fixture.silent_agent("c");
    let (report, code) = ask(&fixture);
    assert_eq!((report["healthy"].as_bool(), code), (Some(false), 1));
    let nodes = report["nodes"].as_array().unwrap();
    let says: Vec<_> =
        nodes.iter().map(|node| (node["name"].as_str().unwrap(), node["says"].as_str().unwrap())).collect();
    assert_eq!(says, [("a", "agent"), ("b", "nobody"), ("c", "server")]);
    assert!(nodes[2]["problems"][0].as_str().unwrap().contains("does not answer"), "{report:#}");
    let pods: Vec<_> =
        report["uncaptured"].as_array().unwrap().iter().map(|pod| pod["name"].as_str().unwrap()).collect();
    assert_eq!(pods, ["web-0", "web-1"]);
}

#[test]
fn without_the_right_to_forward_annotations_speak_and_it_says_so() {
    let fixture = Fixture::new(&["a"]);
    enrol(&fixture);
    fixture.pod("web", "a", Some(ARMED));
    fixture.agent("a", status("0.1.0", &[("web", "armed")]));
    fixture.server.put(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "reader"},
        "rules": [
            {"apiGroups": [""], "resources": ["namespaces", "pods"], "verbs": ["get", "list"]},
            // A GET that becomes a WebSocket is more than a GET.
            {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get"]},
        ],
    }));
    fixture.server.put(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "reader"}],
    }));
    fixture.server.add_user("of-the-reader", User { name: "reader".to_owned(), ..User::default() });
    fixture.act_as("of-the-reader");
    let (report, code) = ask(&fixture);
    assert_eq!((report["healthy"].as_bool(), code), (Some(true), 0), "{report:#}");
    assert_eq!(report["nodes"][0]["says"], "server");
    let notes = report["notes"].to_string();
    for word in ["annotations", "nodes are those", "DaemonSets are not shown"] {
        assert!(notes.contains(word), "{word}: {notes}");
    }
}

#[test]
fn a_server_that_is_not_there_is_an_error() {
    let fixture = Fixture::new(&[]);
    fixture.server.stop();
    let done = fixture.run(&["status", "--cluster"]);
    assert!(done.code == Some(1) && done.out.is_empty() && done.err.contains("namespaces"), "{done:?}");
}
