//! Kubernetes objects, written as YAML.

use std::{fmt::Write as _, net::IpAddr};

use crate::node::{NAMESPACE, Pod};

/// Annotations of an object: name without its prefix `mesh-agent.io/`, and value.
pub type Annotations<'a> = &'a [(&'a str, &'a str)];

/// A Namespace.
pub fn namespace(name: &str, annotations: Annotations<'_>) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n{}---\n", render(annotations))
}

/// A Pod with a service account of its own name; on this node unless `node` says otherwise.
pub fn pod(
    namespace: &str,
    name: &str,
    addresses: &[IpAddr],
    node: Option<&str>,
    annotations: Annotations<'_>,
) -> String {
    let mut text = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n");
    text.push_str(&render(annotations));
    let _ = writeln!(text, "spec:\n  serviceAccountName: {name}");
    if let Some(node) = node {
        let _ = writeln!(text, "  nodeName: {node}");
    }
    text.push_str("status:\n  podIPs:\n");
    for address in addresses {
        let _ = writeln!(text, "  - ip: \"{address}\"");
    }
    text + "---\n"
}

/// The namespace [`NAMESPACE`] with these annotations, and pods in it.
pub fn pods(annotations: Annotations<'_>, pods: &[&Pod]) -> String {
    namespace(NAMESPACE, annotations) + &pods.iter().map(|pod| pod.manifest(&[])).collect::<String>()
}

/// A Pod that has just been scheduled to this node: known by its UID, without an address.
pub fn scheduled(namespace: &str, name: &str, uid: &str, annotations: Annotations<'_>) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  uid: {uid}\n{}status:\n  \
         phase: Pending\n---\n",
        render(annotations)
    )
}

/// A Service with one port and no name for it; `extra` are further lines of its spec, such as
/// `trafficDistribution: PreferSameNode`.
pub fn service(namespace: &str, name: &str, address: IpAddr, port: u16, extra: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  \
         clusterIP: \"{address}\"\n  clusterIPs: [\"{address}\"]\n  ports:\n  - port: {port}\n    protocol: TCP\n{}---\n",
        if extra.is_empty() { String::new() } else { format!("  {extra}\n") }
    )
}

/// An EndpointSlice of a service: addresses, and the node that each is on if it is to be told.
pub fn slice(namespace: &str, service: &str, port: u16, endpoints: &[(IpAddr, Option<&str>)]) -> String {
    let family = if endpoints.first().is_some_and(|(address, _)| address.is_ipv6()) { "IPv6" } else { "IPv4" };
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-1\n  \
         namespace: {namespace}\n  labels:\n    kubernetes.io/service-name: {service}\naddressType: {family}\n\
         ports:\n- port: {port}\n  protocol: TCP\nendpoints:{}\n",
        if endpoints.is_empty() { " []" } else { "" }
    );
    for (address, node) in endpoints {
        let _ = writeln!(text, "- addresses: [\"{address}\"]\n  conditions:\n    ready: true");
        if let Some(node) = node {
            let _ = writeln!(text, "  nodeName: {node}");
        }
    }
    text + "---\n"
}

fn render(annotations: Annotations<'_>) -> String {
    if annotations.is_empty() {
        return String::new();
    }
    let lines = annotations.iter().fold(String::new(), |mut lines, (name, value)| {
        let _ = writeln!(lines, "    mesh-agent.io/{name}: \"{value}\"");
        lines
    });
    format!("  annotations:\n{lines}")
}
