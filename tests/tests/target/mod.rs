//! The server that a contract is checked on: the test server, or with `MESH_TEST_KUBECONFIG` a real cluster.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::{
    future::Future,
    io::Write,
    panic::AssertUnwindSafe,
    sync::{Arc, Once},
    time::Duration,
};

use futures_util::FutureExt as _;

use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, PostParams},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use mesh_tests::api::{ApiServer, Options};
use serde_json::{Value, json};

/// Names the kubeconfig of a real cluster's administrator.
const KUBECONFIG: &str = "MESH_TEST_KUBECONFIG";

/// A server and an administrator's client of it.
pub(crate) struct Target {
    pub(crate) client: Client,
    config: Config,
    /// None: a real cluster. Kept for as long as the target is.
    _server: Option<ApiServer>,
}

impl Target {
    async fn open() -> Self {
        let (kubeconfig, server) = if let Ok(path) = std::env::var(KUBECONFIG) {
            say(&format!("target: the cluster of {path}"));
            (Kubeconfig::read_from(path).expect("the kubeconfig"), None)
        } else {
            say(&format!("target: the test server; {KUBECONFIG} names a real one"));
            let server = ApiServer::with(Options::default());
            server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}}));
            (Kubeconfig::from_yaml(&server.kubeconfig(server.admin())).expect("a kubeconfig"), Some(server))
        };
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let mut config = config.expect("a configuration");
        // A refusal is what is looked at.
        config.default_retry = false;
        Self { client: Client::try_from(config.clone()).expect("a client"), config, _server: server }
    }

    /// The same server for whoever has this token.
    pub(crate) fn with_token(&self, token: &str) -> Client {
        let mut config = self.config.clone();
        config.auth_info = AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() };
        Client::try_from(config).expect("a client")
    }

    /// Any node.
    pub(crate) async fn node(&self) -> Node {
        let nodes = Api::<Node>::all(self.client.clone()).list(&ListParams::default()).await.expect("nodes");
        nodes.items.into_iter().next().expect("a node")
    }
}

/// Says which server it is, once, and where the harness does not capture it.
fn say(what: &str) {
    static SAID: Once = Once::new();
    SAID.call_once(|| _ = writeln!(std::io::stderr(), "{what}"));
}

/// Runs a contract in a namespace of its own, which is deleted afterwards.
pub(crate) fn contract<F: Future<Output = ()>>(name: &str, check: impl FnOnce(Arc<Target>, String) -> F) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let target = Arc::new(Target::open().await);
        let namespaces = Api::<Namespace>::all(target.client.clone());
        let prefix = format!("mesh-contract-{name}-");
        let namespace = object(json!({"metadata": {"generateName": prefix}}));
        let namespace = namespaces.create(&PostParams::default(), &namespace).await.expect("a namespace");
        let namespace = namespace.metadata.name.expect("generated");
        let checked = AssertUnwindSafe(check(Arc::clone(&target), namespace.clone())).catch_unwind().await;
        namespaces.delete(&namespace, &DeleteParams::background()).await.expect("a namespace can be deleted");
        if let Err(panic) = checked {
            std::panic::resume_unwind(panic);
        }
    });
}

/// An object of its type, from what JSON says of it.
pub(crate) fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object")
}

/// The code with which a request was refused.
#[track_caller]
pub(crate) fn code<T>(result: Result<T, kube::Error>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.reason.clone()),
        Err(other) => panic!("no answer of the server: {other}"),
        Ok(_) => panic!("not refused"),
    }
}

/// Asks until `ask` has what it wants.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let wait = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("not within 30 s: {what}"))
}
