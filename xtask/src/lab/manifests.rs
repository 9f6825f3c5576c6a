//! The folder of manifests that an agent is given: a namespace and its pods.

use std::{
    fmt::Write,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::network;

/// A pod to be.
pub(crate) struct Pod {
    /// Its name.
    pub(crate) name: String,
    /// The full name of its network namespace.
    pub(crate) netns: String,
    /// Its address.
    pub(crate) address: Ipv4Addr,
    /// The node it is on.
    pub(crate) node: &'static str,
}

impl Pod {
    /// Its UID where it is an object of an API server: of its address, since that is its own.
    pub(crate) fn uid(&self) -> String {
        format!("{:08x}-be9c-4000-8000-000000000000", self.address.to_bits())
    }
}

/// The folder.
pub(crate) struct Manifests {
    folder: PathBuf,
    namespace: &'static str,
}

impl Manifests {
    /// Makes it, with these pods in a namespace that is not enrolled.
    ///
    /// # Errors
    /// It can't be written.
    pub(crate) fn create(folder: PathBuf, namespace: &'static str, pods: &[Pod]) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let manifests = Self { folder, namespace };
        manifests.enroll(false)?;
        manifests.replace("pods.yaml", &pods.iter().map(|pod| document(namespace, pod)).collect::<String>())?;
        Ok(manifests)
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Toggles the namespace.
    ///
    /// # Errors
    /// It can't be written.
    pub(crate) fn enroll(&self, on: bool) -> Result<()> {
        let (name, mesh) = (self.namespace, if on { "enabled" } else { "disabled" });
        self.replace(
            "namespace.yaml",
            &format!(
                "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  annotations:\n    mesh-agent.io/mesh: {mesh}\n"
            ),
        )
    }

    /// Adds pods of `node` with a service account each, and no network: identities for the agent to keep.
    ///
    /// # Errors
    /// They can't be written.
    pub(crate) fn crowd(&self, node: &'static str, count: usize) -> Result<()> {
        let mut text = String::new();
        for n in 0..count {
            let (namespace, name) = (self.namespace, format!("crowd-{n}"));
            let _infallible = write!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n\
                 spec:\n  nodeName: {node}\n  serviceAccountName: {name}\n",
            );
        }
        self.replace("crowd.yaml", &text)
    }

    /// Whole or not at all, as an editor or `kubectl` would: a reader never sees half a file.
    fn replace(&self, file: &str, text: &str) -> Result<()> {
        let target = self.folder.join(file);
        let draft = self.folder.with_extension("draft");
        fs::write(&draft, text).and_then(|()| fs::rename(&draft, &target)).with_context(|| target.display().to_string())
    }
}

fn document(namespace: &str, pod: &Pod) -> String {
    let mut text = String::new();
    let Pod { name, address, node, .. } = pod;
    let netns = network::path(&pod.netns);
    let _infallible = write!(
        text,
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  annotations:\n    \
         mesh-agent.io/netns: {}\nspec:\n  nodeName: {node}\n  serviceAccountName: {name}\nstatus:\n  podIPs:\n    \
         - ip: {address}\n",
        netns.display(),
    );
    text
}
