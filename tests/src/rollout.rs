//! What the tests on a cluster put there: pure builders of objects, and what is read from answers.

use serde_json::{Value, json};

/// Namespace of the agents and the authority.
pub const SYSTEM: &str = "mesh-system";
/// Namespace of the apps that are enrolled.
pub const APPS: &str = "mesh-cluster-apps";
/// Namespace of apps that never are.
pub const OUTSIDE: &str = "mesh-cluster-outside";
/// What enrols a namespace.
pub const TOGGLE: &str = "mesh-agent.io/mesh";
/// What an agent says of a pod.
pub const STATUS: &str = "mesh-agent.io/status";
/// Port of the apps.
pub const PORT: u16 = 8080;
/// Where the agents answer.
pub const HTTP_PORT: u16 = 15020;

/// Values of the chart. Nodes may be containers on one machine, which share bpffs and `/run`: so each has folders of its own.
pub fn values(image: &str, mount_bpffs: bool, api_server: Option<(&str, &str)>) -> Value {
    let (repository, tag) = split_image(image);
    let (host, port) = api_server.unwrap_or_default();
    let of_the_node =
        |name: &str, folder: &str| json!({"name": name, "value": format!("{folder}/$(MESH_AGENT_NODE_NAME)")});
    json!({
        "createNamespace": true,
        "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
        "apiServer": {"host": host, "port": port},
        "agent": {
            "log": "info,mesh_agent=debug",
            "drainDeadlineSeconds": 10,
            "mountBpffs": mount_bpffs,
            "extraEnv": [
                of_the_node("MESH_AGENT_RUN_DIR", "/run/mesh-agent"),
                of_the_node("MESH_AGENT_BPFFS", "/sys/fs/bpf"),
            ],
        },
        "ca": {"replicas": 1, "log": "debug", "tolerations": [{"operator": "Exists"}]},
    })
}

/// `REGISTRY:5000/NAME:TAG`; without a tag it is `latest`.
fn split_image(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (image, "latest"),
    }
}

/// A namespace, as it is before it is enrolled.
pub fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
    })
}

/// What enrols it, or takes it out.
pub fn toggle(on: bool) -> Value {
    json!({"metadata": {"annotations": {TOGGLE: if on { json!("enabled") } else { Value::Null }}}})
}

/// A pod of the test programs, on a node.
pub fn pod(namespace: &str, name: &str, node: &str, image: &str, program: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            // Process 1 of a container does not end by a signal that it does not handle.
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "app", "image": image, "imagePullPolicy": "Never", "command": program}],
        },
    })
}

/// The same on the node's network.
pub fn node_pod(name: &str, node: &str, image: &str, program: &[&str]) -> Value {
    let mut pod = pod(OUTSIDE, name, node, image, program);
    if let Some(spec) = pod["spec"].as_object_mut() {
        spec.insert("hostNetwork".to_owned(), true.into());
        spec.insert("hostPID".to_owned(), true.into());
    }
    pod
}

/// The same with the rights and the folders that the agent has.
pub fn node_root_pod(name: &str, node: &str, image: &str, program: &[&str]) -> Value {
    const FOLDERS: [(&str, &str, &str); 3] = [
        ("bpffs", "/sys/fs/bpf", "/sys/fs/bpf"),
        ("cgroup", "/sys/fs/cgroup", "/host/cgroup"),
        ("run", "/run", "/host/run"),
    ];
    let mut pod = node_pod(name, node, image, program);
    let volume = |(name, path, _): &(&str, &str, &str)| json!({"name": name, "hostPath": {"path": path}});
    let mount = |(name, _, path): &(&str, &str, &str)| json!({"name": name, "mountPath": path, "readOnly": true});
    pod["spec"]["volumes"] = FOLDERS.iter().map(volume).collect();
    pod["spec"]["containers"][0]["volumeMounts"] = FOLDERS.iter().map(mount).collect();
    pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    pod
}

/// No plaintext to the apps.
pub fn strict() -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"namespace": APPS, "name": "strict"},
        "spec": {"mtls": {"mode": "STRICT"}},
    })
}

/// Sum of the series of a metric whose labels contain all of `labels`, as in `transport="mutual"`.
pub fn metric(text: &str, name: &str, labels: &[&str]) -> f64 {
    let series = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (found, of) = series.split_once('{').unwrap_or((series, ""));
        (found == name && labels.iter().all(|label| of.contains(label))).then(|| value.parse::<f64>().ok()).flatten()
    });
    series.sum()
}

/// How a load has gone so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub struct Load {
    /// Requests by connections of their own.
    pub ok: u64,
    /// Those that failed.
    pub failed: u64,
    /// Requests by the connection that stays.
    pub kept: u64,
    /// How often that had to be opened again.
    pub reopened: u64,
    /// Of any of them.
    pub last_error: String,
}

impl Load {
    /// Reads the last line of a log that is one.
    pub fn last(log: &str) -> Option<Self> {
        log.lines().rev().find_map(|line| serde_json::from_str(line).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_cut_at_their_tags() {
        assert_eq!(split_image("mesh-agent:test"), ("mesh-agent", "test"));
        assert_eq!(split_image("registry:5000/a/mesh-agent"), ("registry:5000/a/mesh-agent", "latest"));
        assert_eq!(split_image("registry:5000/mesh-agent:v1"), ("registry:5000/mesh-agent", "v1"));
    }

    #[test]
    fn series_are_summed_by_labels() {
        let text = "# HELP a b\na{t=\"mutual\",p=\"x\"} 2\na{p=\"y\",t=\"mutual\"} 3\na{t=\"local\"} 7\nab 1\nup 1\n";
        assert!((metric(text, "a", &["t=\"mutual\""]) - 5.0).abs() < 0.1);
        assert!((metric(text, "up", &[]) - 1.0).abs() < 0.1);
    }

    #[test]
    fn the_last_report_counts() {
        let line = |ok| json!({"ok": ok, "failed": 0, "kept": 1, "reopened": 0, "last_error": ""}).to_string();
        assert_eq!(Load::last(&format!("{}\n{}\n{{\"ok\":", line(1), line(2))).unwrap().ok, 2);
        assert_eq!(Load::last("nothing"), None);
    }
}
