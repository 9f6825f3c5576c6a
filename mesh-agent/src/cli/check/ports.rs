//! Whether something in a pod already listens on the agent's ports.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use mesh_common::{INBOUND_PORT, OUTBOUND_PORT};

use super::Check;
use crate::{cli::host, discovery, model::ObjectName, net::netns::Netns};

const NAME: &str = "pod ports";
const NETNS_ANNOTATION: &str = "mesh-agent.io/netns";

/// One line per conflict, or one that says that there is none.
pub(super) fn checks(manifests: &Path, agent_runs: bool) -> Vec<Check> {
    if agent_runs {
        return vec![Check::ok(NAME, "not looked at: the running agent listens on them itself")];
    }
    let pods = match pods_of(manifests) {
        Ok(pods) => pods,
        Err(error) => return vec![Check::warn(NAME, format!("unknown: {error:#}"), "Mend it and check again.")],
    };
    let mut found: Vec<_> = pods.iter().filter_map(|(pod, netns)| check(pod, netns)).collect();
    if found.is_empty() {
        found.push(Check::ok(NAME, format!("{OUTBOUND_PORT} and {INBOUND_PORT} are free in {} pods", pods.len())));
    }
    found
}

fn check(pod: &ObjectName, netns: &Path) -> Option<Check> {
    match listening_ports(netns) {
        Ok(ports) => {
            let taken = [OUTBOUND_PORT, INBOUND_PORT].into_iter().find(|port| ports.contains(port))?;
            Some(Check::warn(
                NAME,
                format!("something in pod {pod} listens on {taken}, the agent's usual port"),
                "None needed: in that pod the agent takes another port, which is all that ss will show.",
            ))
        }
        Err(error) => Some(Check::warn(
            NAME,
            format!("unknown in pod {pod}: {}: {error}", netns.display()),
            format!("Check that the network namespace exists (annotation {NETNS_ANNOTATION}) and that you are root."),
        )),
    }
}

/// Ports with a listener in the namespace.
fn listening_ports(netns: &Path) -> io::Result<Vec<u16>> {
    Netns::open(netns)?.run(|| {
        // Not /proc/net: that is the main thread's.
        let mut ports = host::parse_listening_ports(&fs::read_to_string("/proc/thread-self/net/tcp")?);
        // Absent when IPv6 is off.
        let v6 = fs::read_to_string("/proc/thread-self/net/tcp6").unwrap_or_default();
        ports.extend(host::parse_listening_ports(&v6));
        Ok(ports)
    })
}

/// Pods with their network namespaces, as the annotation names them.
fn pods_of(manifests: &Path) -> anyhow::Result<Vec<(ObjectName, PathBuf)>> {
    let entries = fs::read_dir(manifests).with_context(|| format!("cannot read {}", manifests.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", manifests.display()))?.path();
        if path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml") {
            files.push(path);
        }
    }
    files.sort();
    let mut pods = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        pods.extend(discovery::network_namespaces(file, &text).map_err(|problem| anyhow!("{problem}"))?);
    }
    Ok(pods)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_found_with_their_namespaces() {
        let folder = tempfile::tempdir().unwrap();
        let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata:
  name: cart
  namespace: shop
  annotations: {mesh-agent.io/netns: cart-ns}
---
apiVersion: v1
kind: Pod
metadata: {name: bare, annotations: {mesh-agent.io/netns: /proc/77/ns/net}}
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere}
";
        fs::write(folder.path().join("a.yaml"), text).unwrap();
        fs::write(folder.path().join("notes.txt"), ": not yaml").unwrap();
        let expected = [
            (ObjectName::new("shop", "cart"), PathBuf::from("/run/netns/cart-ns")),
            (ObjectName::new("default", "bare"), PathBuf::from("/proc/77/ns/net")),
        ];
        assert_eq!(pods_of(folder.path()).unwrap(), expected);
    }

    #[test]
    fn a_missing_namespace_names_the_pod_and_the_annotation() {
        let check = check(&ObjectName::new("shop", "cart"), Path::new("/run/netns/none-of-that-name")).unwrap();
        assert!(check.found.contains("shop/cart") && check.remedy.contains(NETNS_ANNOTATION), "{check:?}");
    }
}
