//! What a kubelet and a container runtime do to the cgroup tree when a pod starts, and in which order: the pod's cgroup,
//! its network namespace, the sandbox's cgroup and the runtime's process in it, which is still in the node's namespace and
//! then moves, and only then the containers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use mesh_agent::net::netns::Netns;

use crate::{node::Namespace, wait::eventually};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The cgroup driver: how cgroups are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `kubepods/besteffort/podUID/ID`.
    Cgroupfs,
    /// `kubelet.slice/kubelet-kubepods.slice/...`, as in kind.
    Systemd,
}

/// Where cgroup v2 is mounted.
///
/// # Panics
/// When it is not.
pub fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc");
    let mut points = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let point = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
    });
    points.next().expect("cgroup v2")
}

/// A UID that no other pod of the tests has.
pub fn uid() -> String {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:08x}-7e57-4000-8000-{count:012x}", std::process::id())
}

/// A part of the cgroup tree for a kubelet; removed on drop, with all that runs in it.
#[derive(Debug)]
pub struct Kubelet {
    root: PathBuf,
    driver: Driver,
    /// Where the runtime's processes are born.
    network: Arc<Netns>,
}

impl Kubelet {
    /// A kubelet in the test's own network namespace, whose cgroups are in a folder of their own.
    ///
    /// # Panics
    /// When they cannot be made.
    pub fn new(driver: Driver) -> Self {
        Self::on(driver, Path::new("/proc/self/ns/net"))
    }

    /// One in the network namespace of a node.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn on(driver: Driver, network: &Path) -> Self {
        let network = Arc::new(Netns::open(network).expect("the node's network namespace"));
        let name = format!("mesh-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let root = cgroup_root().join(name);
        fs::create_dir(&root).expect("root may make cgroups");
        let kubelet = Self { root, driver, network };
        fs::create_dir_all(kubelet.class()).expect("root may make cgroups");
        kubelet
    }

    /// The folder of its cgroups.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn class(&self) -> PathBuf {
        self.root.join(match self.driver {
            Driver::Cgroupfs => "kubepods/besteffort",
            Driver::Systemd => "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice",
        })
    }

    /// Makes the cgroup of a pod.
    pub fn pod(&self, uid: &str) -> PodCgroup {
        let name = match self.driver {
            Driver::Cgroupfs => format!("pod{uid}"),
            Driver::Systemd => format!("kubelet-kubepods-besteffort-pod{}.slice", uid.replace('-', "_")),
        };
        let folder = self.class().join(name);
        fs::create_dir(&folder).expect("a cgroup");
        PodCgroup { folder, driver: self.driver, born: Arc::clone(&self.network), processes: Vec::new() }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        // All at once, below too (cgroup-v2.rst, "cgroup.kill").
        let _ = fs::write(self.root.join("cgroup.kill"), "1");
        remove(&self.root);
    }
}

/// A pod's cgroup; what runs in it ends on drop.
#[derive(Debug)]
pub struct PodCgroup {
    folder: PathBuf,
    driver: Driver,
    born: Arc<Netns>,
    processes: Vec<Child>,
}

impl PodCgroup {
    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes a container's cgroup, without a process.
    pub fn container(&self) -> PathBuf {
        let id = format!("{:064x}", COUNT.fetch_add(1, Ordering::Relaxed));
        let name = match self.driver {
            Driver::Cgroupfs => id,
            Driver::Systemd => format!("cri-containerd-{id}.scope"),
        };
        let folder = self.folder.join(name);
        fs::create_dir(&folder).expect("a cgroup");
        folder
    }

    /// Starts the pause process of a sandbox in a container's cgroup, as a runtime does: born on the node, then moved
    /// into the pod's network namespace if it has one.
    pub fn pause(&mut self, container: &Path, network: Option<&Namespace>) {
        self.run(container, network, "sleep 1000");
    }

    /// Starts a command line in a container's cgroup, in the same way.
    pub fn run(&mut self, container: &Path, network: Option<&Namespace>, command: &str) {
        let procs = container.join("cgroup.procs").display().to_string();
        let enter = network.map(|network| format!("{} netns exec {} ", ip(), network.name())).unwrap_or_default();
        let script = format!("echo $$ > {procs} && exec {enter}{command}");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null());
        let child = self.born.run(|| shell.spawn()).expect("a shell");
        self.processes.push(child);
    }

    /// Waits until what was started last has ended by itself.
    ///
    /// # Panics
    /// When it does not, or nothing was started.
    pub fn await_end(&mut self) {
        let process = self.processes.last_mut().expect("something was started");
        eventually("it ends by itself", || process.try_wait().expect("our child"));
    }

    /// Ends what runs in a container, and removes its cgroup.
    ///
    /// # Panics
    /// When nothing was started in it.
    pub fn stop(&mut self, container: &Path) {
        eventually("what was started is in the cgroup", || is_populated(container).then_some(()));
        let _ = fs::write(container.join("cgroup.kill"), "1");
        remove(container);
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.folder.join("cgroup.kill"), "1");
        for process in &mut self.processes {
            // Some may be on their way into the cgroup.
            let _ = process.kill();
            let _ = process.wait();
        }
        remove(&self.folder);
    }
}

fn is_populated(folder: &Path) -> bool {
    fs::read_to_string(folder.join("cgroup.events")).is_ok_and(|events| events.contains("populated 1"))
}

/// Removes a cgroup and those below it, once what was killed in them has gone.
fn remove(folder: &Path) {
    eventually("the cgroup is empty", || {
        let entries = folder.read_dir().into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.for_each(|entry| remove(&entry.path()));
        match fs::remove_dir(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => None,
            _ => Some(()),
        }
    });
}

/// Where `ip` is. By its name alone, the shell of busybox would take its own, which knows no namespaces.
fn ip() -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("ip")).find(|program| program.is_file());
    found.expect("iproute2 is installed").display().to_string()
}
