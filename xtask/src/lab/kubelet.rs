//! What a kubelet and a container runtime do that an agent sees: a cgroup per pod with the UID in its name, and in it a
//! process in the pod's network namespace.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    accounts::mount_point,
    manifests::Pod,
    network, poll,
    process::{Launch, Process},
};

/// The cgroups of a node's pods, and a process in each. Removed on drop.
pub(crate) struct Kubelet {
    root: PathBuf,
    folders: Vec<PathBuf>,
    processes: Vec<Process>,
}

impl Kubelet {
    /// In a part of the cgroup tree with this name; one that a killed run left is used.
    ///
    /// # Errors
    /// There is no cgroup v2, or it cannot be written.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
        let mount = mount_point(&mounts, "cgroup2", None).context("no cgroup v2 is mounted")?;
        Ok(Self { root: mount.join(name), folders: Vec::new(), processes: Vec::new() })
    }

    /// Runs a pod.
    ///
    /// # Errors
    /// Its cgroup or its process can't be made.
    pub(crate) fn run(&mut self, launch: &Launch<'_>, pod: &Pod, log: PathBuf) -> Result<()> {
        let folder = self.root.join(format!("kubepods/besteffort/pod{}", pod.uid()));
        let container = folder.join(format!("{:064x}", self.folders.len()));
        fs::create_dir_all(&container).with_context(|| container.display().to_string())?;
        self.folders.extend([container.clone(), folder]);
        let process = launch.start(Path::new("sleep"), ["infinity"], log)?;
        let own = fs::metadata(network::path(&pod.netns))?.ino();
        // Until then it is on its way there.
        poll("a pod's process in its namespace", Duration::from_secs(10), || {
            let namespace = fs::metadata(format!("/proc/{}/ns/net", process.pid()));
            Ok(namespace.is_ok_and(|namespace| namespace.ino() == own).then_some(()))
        })?;
        fs::write(container.join("cgroup.procs"), process.pid().to_string()).context("a process into its cgroup")?;
        self.processes.push(process);
        Ok(())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.processes.clear();
        let above = ["kubepods/besteffort", "kubepods", ""].map(|folder| self.root.join(folder));
        for folder in self.folders.drain(..).chain(above) {
            match fs::remove_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    eprintln!("left behind: {}: {error}", folder.display());
                }
                _ => {}
            }
        }
    }
}
