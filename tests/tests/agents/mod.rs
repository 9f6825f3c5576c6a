//! Agents of a cluster that are not there: their pods, and what they answer to a port-forward. And the command line tool.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, dead_code, reason = "helpers of several tests")]

use std::{
    io::Read,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use mesh_agent::{
    admin::http::{DEFAULT_PORT, Listener, Pages},
    kubernetes::writeback::STATUS,
    telemetry::Format,
};
use mesh_tests::{agent::binary, api::ApiServer};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

pub(crate) const ARMED: &str = r#"{"state":"armed","mode":"permissive","since":"2026-11-22T10:00:00Z"}"#;
/// Namespace of the agents.
const SYSTEM: &str = "mesh-system";

/// Makes the answer to the question with that number.
type Networks = Box<dyn Fn(u64) -> Value + Send>;

/// What an agent says.
#[derive(Default)]
pub(crate) struct Said {
    /// To `/v1/status`.
    pub(crate) status: Mutex<Value>,
    /// To `/v1/networks`: how often it was asked is what it is made from.
    pub(crate) networks: Mutex<Option<Networks>>,
    asked: Mutex<u64>,
}

impl Pages for Said {
    async fn stuck(&self) -> Vec<String> {
        Vec::new()
    }

    async fn waiting_for(&self) -> Vec<String> {
        Vec::new()
    }

    async fn metrics(&self, _: Format) -> String {
        String::new()
    }

    async fn json(&self, path: &str, _: &str) -> Option<Vec<u8>> {
        let value = match path {
            "/v1/status" => self.status.lock().unwrap().clone(),
            "/v1/networks" => {
                let mut asked = self.asked.lock().unwrap();
                *asked += 1;
                self.networks.lock().unwrap().as_ref().map(|networks| networks(*asked))?
            }
            _ => return None,
        };
        Some(value.to_string().into_bytes())
    }
}

/// A cluster, as far as its API server goes.
pub(crate) struct Fixture {
    pub(crate) server: ApiServer,
    runtime: Runtime,
    folder: tempfile::TempDir,
}

impl Fixture {
    /// With the namespace `shop`, not enrolled, and these nodes.
    pub(crate) fn new(nodes: &[&str]) -> Self {
        let server = ApiServer::start();
        for namespace in ["shop", SYSTEM] {
            server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
        }
        for node in nodes {
            server.put(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": node},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            }));
        }
        let folder = tempfile::tempdir().unwrap();
        let fixture = Self { server, runtime: Runtime::new().unwrap(), folder };
        fixture.act_as(fixture.server.admin());
        fixture
    }

    /// As whom the commands come, by token.
    pub(crate) fn act_as(&self, token: &str) {
        std::fs::write(self.folder.path().join("kubeconfig"), self.server.kubeconfig(token)).unwrap();
    }

    /// An agent's pod on the node, and who answers its port-forwards.
    pub(crate) fn agent(&self, node: &str, status: Value) -> Arc<Said> {
        let name = self.silent_agent(node);
        let said = Arc::new(Said { status: Mutex::new(status), ..Said::default() });
        let pages = Arc::clone(&said);
        let address = self.runtime.block_on(async move {
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let address = listener.local_address().unwrap();
            tokio::spawn(listener.run(pages));
            address
        });
        self.server.forward(SYSTEM, &name, DEFAULT_PORT, Some(address));
        said
    }

    /// An agent's pod on whose port nobody listens.
    pub(crate) fn silent_agent(&self, node: &str) -> String {
        let name = format!("mesh-agent-{node}");
        self.server.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": SYSTEM, "labels": {"app.kubernetes.io/name": "mesh-agent"}},
            "spec": {"nodeName": node, "hostNetwork": true, "containers": [{"name": "agent", "image": "none:0"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        }));
        name
    }

    /// A pod of `shop` that runs.
    pub(crate) fn pod(&self, name: &str, node: &str, annotation: Option<&str>) {
        self.server.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "shop",
                "annotations": annotation.map_or_else(|| json!({}), |annotation| json!({ STATUS: annotation })),
            },
            "spec": {"nodeName": node, "containers": [{"name": "app", "image": "none:0"}]},
            "status": {"phase": "Running"},
        }));
    }

    /// The annotation of the namespace `shop`.
    pub(crate) fn mesh(&self) -> Option<String> {
        let namespace = self.server.get("v1", "Namespace", "", "shop").unwrap();
        namespace["metadata"]["annotations"]["mesh-agent.io/mesh"].as_str().map(str::to_owned)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--kubeconfig").arg(self.folder.path().join("kubeconfig"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Done {
        self.command(arguments).output().expect("the tool is built").into()
    }

    /// Starts one.
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().expect("the tool is built")
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

/// Waits for its end.
pub(crate) fn end(child: Child) -> Done {
    child.wait_with_output().expect("our child").into()
}

/// Reads what it says until it says this.
pub(crate) fn until(child: &mut Child, text: &str) -> String {
    let mut said = String::new();
    let err = child.stderr.as_mut().expect("piped");
    let mut byte = [0];
    while !said.contains(text) {
        assert_eq!(err.read(&mut byte).expect("a pipe"), 1, "it ended: {said}");
        said.push(char::from(byte[0]));
    }
    said
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, is: impl Fn() -> bool) {
    mesh_tests::wait::within(Duration::from_mins(1), what, || is().then_some(()));
}

/// The status of an agent, in short: its pods, as name and state.
pub(crate) fn status(version: &str, pods: &[(&str, &str)]) -> Value {
    let counts = json!({"open": 0, "total": 0, "failed": 0, "to_upstream_bytes": 0, "to_downstream_bytes": 0});
    let pod = |(name, state): &(&str, &str)| {
        json!({
            "name": {"namespace": "shop", "name": name}, "addresses": [], "enrolled": true, "state": state,
            "mode": "permissive", "outbound": counts, "inbound": counts, "direct_open": 0, "direct_total": 0,
            "direct_bytes": 0, "captured": 0, "passed": 0, "bypassed": 0, "refused": 0, "unaccounted": 0, "counters": {},
        })
    };
    json!({
        "healthy": true, "version": version, "pid": 7, "uptime_seconds": 60, "rss_bytes": 4096,
        "node": {
            "name": "n", "zone": null, "addresses": [], "source": "kubernetes", "source_age_ms": 1250, "snapshot": 3,
            "direct": "on",
        },
        "kernel": {"release": "6.1.0", "abi": 9, "pins": "/sys/fs/bpf", "hooks": []},
        "workers": [], "namespaces": [], "pods": pods.iter().map(pod).collect::<Vec<_>>(), "reasons": {},
        "problems": [],
    })
}
