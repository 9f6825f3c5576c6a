//! A Kubernetes API server with the objects of a large cluster, and with pods of ours among them.

use std::{
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    manifests::Pod,
    poll,
    process::{Launch, Process},
};

/// The API server of the tests.
pub(crate) const API_SERVER: (&str, &str) = ("mesh-tests", "mesh-test-api");
/// Changes endpoints.
pub(crate) const CHURN: (&str, &str) = ("mesh-tests", "mesh-test-churn");

/// A service with one endpoint.
pub(crate) struct Service {
    /// Its name, and that of its EndpointSlice.
    pub(crate) name: &'static str,
    /// Its address.
    pub(crate) address: Ipv4Addr,
    /// Its ports, which are the endpoint's.
    pub(crate) ports: &'static [u16],
    /// The endpoint's address.
    pub(crate) endpoint: Ipv4Addr,
}

/// A running API server. Ended on drop.
pub(crate) struct Cluster {
    folder: PathBuf,
    _process: Process,
}

impl Cluster {
    /// Starts one with so many pods that are none, a tenth as many services and nodes, and with these pods and services of
    /// an enrolled namespace; waits until it serves them.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn start(
        launch: &Launch<'_>,
        program: &Path,
        folder: PathBuf,
        crowd: usize,
        (namespace, pods, services): (&str, &[Pod], &[Service]),
    ) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let file = folder.join("objects.yaml");
        fs::write(&file, objects(namespace, pods, services))?;
        let mut args = vec!["--directory".into(), folder.clone(), "--load".into(), file];
        let (crowd, tenth) = (crowd.to_string(), (crowd / 10).max(1).to_string());
        args.extend(["--pods", &crowd, "--services", &tenth, "--nodes", &tenth].map(PathBuf::from));
        let mut process = launch.start(program, args, folder.join("api.log"))?;
        poll("the API server", Duration::from_mins(2), || {
            if let Some(status) = process.ended()? {
                bail!("it ended: {status}");
            }
            Ok(process.log().contains(" serves ").then_some(()))
        })
        .with_context(|| process.last_words())?;
        Ok(Self { folder, _process: process })
    }

    /// Where its kubeconfig is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// How to reach it.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }
}

fn objects(namespace: &str, pods: &[Pod], services: &[Service]) -> String {
    let mut text = format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, annotations: {{mesh-agent.io/mesh: enabled}}}}}}\n"
    );
    for pod in pods {
        let Pod { name, address, node, .. } = pod;
        let _infallible = write!(
            text,
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, uid: {}}}, \
             spec: {{nodeName: {node}, serviceAccountName: {name}, containers: [{{name: app, image: none}}]}}, \
             status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}}}\n",
            pod.uid(),
        );
    }
    for Service { name, address, ports, endpoint } in services {
        let list = |more: &dyn Fn(u16) -> String| {
            let entries =
                ports.iter().map(|port| format!("{{name: p{port}, protocol: TCP, port: {port}{}}}", more(*port)));
            entries.collect::<Vec<_>>().join(", ")
        };
        let _infallible = write!(
            text,
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, \
             spec: {{type: ClusterIP, clusterIP: {address}, clusterIPs: [{address}], ports: [{}]}}}}\n\
             ---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, \
             metadata: {{name: {name}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}, \
             ports: [{}], endpoints: [{{addresses: [{endpoint}], conditions: {{ready: true}}}}]}}\n",
            list(&|port| format!(", targetPort: {port}")),
            list(&|_| String::new()),
        );
    }
    text
}
