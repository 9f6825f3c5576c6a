//! A node with its pods: a network namespace with a bridge, and one network namespace per pod, joined by veth pairs.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    thread,
};

use mesh_agent::net::netns::Netns;

use crate::{agent::Agent, manifest};

/// Folder of named network namespaces.
const NETNS: &str = "/run/netns";
/// How names start; then come the test's process and a number.
const PREFIX: &str = "mesh-test-";
/// Name of the first node, as `--node-name` has it.
pub const NODE_NAME: &str = "node-1";
/// Namespace that the pods are in.
pub const NAMESPACE: &str = "shop";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A named network namespace, removed on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    netns: Netns,
}

impl Namespace {
    /// A new one; `role` becomes part of its name.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(role: &str) -> Self {
        static TIDIED: std::sync::Once = std::sync::Once::new();
        TIDIED.call_once(remove_what_the_dead_left);
        let name = format!("{PREFIX}{}-{}-{role}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let netns = Netns::open(&Path::new(NETNS).join(&name)).expect("the namespace that was just made");
        let namespace = Self { name, netns };
        // Nobody else is there: an address of a new link need not wait a second for one who has it already.
        for which in ["all", "default"] {
            namespace.set(&format!("ipv6/conf/{which}/accept_dad"), "0");
        }
        namespace.batch("link set lo up\n");
        namespace
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS).join(&self.name)
    }

    /// Runs `work` on a thread in the namespace. Sockets made there stay there.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.netns.enter().expect("root may enter");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Sets a file below `/proc/sys/net` of the namespace.
    pub fn set(&self, file: &str, value: &str) {
        let path = Path::new("/proc/sys/net").join(file);
        self.run(|| std::fs::write(&path, value)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Commands for `ip -batch` in the namespace, one a line.
    pub fn batch(&self, commands: &str) {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("iproute2");
        child.stdin.take().expect("piped").write_all(commands.as_bytes()).expect("ip reads its commands");
        let output = child.wait_with_output().expect("ip ends");
        assert!(output.status.success(), "ip in {}: {}{commands}", self.name, String::from_utf8_lossy(&output.stderr));
    }

    /// Removes its name; the namespace lives on while somebody holds it.
    pub fn delete(&self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.delete();
    }
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// Its name, in the namespace [`NAMESPACE`].
    pub name: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Name of its node.
    pub node: String,
    /// Its network namespace.
    pub namespace: Namespace,
}

impl Pod {
    /// A socket address of the pod.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.v4, port).into()
    }

    /// The same over IPv6.
    pub fn at6(&self, port: u16) -> SocketAddr {
        (self.v6, port).into()
    }

    /// Both addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Runs `work` on a thread in the pod.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work)
    }

    /// Listens in the pod, on all its addresses.
    pub fn listen(&self, port: u16) -> TcpListener {
        self.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))).expect("the port is free")
    }

    /// Its manifest.
    pub fn manifest(&self, annotations: manifest::Annotations<'_>) -> String {
        let path = self.namespace.path().display().to_string();
        let mut all = vec![("netns", path.as_str())];
        all.extend_from_slice(annotations);
        manifest::pod(NAMESPACE, &self.name, &self.addresses(), Some(&self.node), &all)
    }
}

/// A node: a bridge, pods, a folder of manifests.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where the agent runs.
    pub namespace: Namespace,
    /// Scratch space: manifests, run folder, bpffs.
    pub folder: tempfile::TempDir,
    /// Folder of the authority within its agent, shared by those that are to trust one another.
    pub ca_root: PathBuf,
    /// Third number of its pods' addresses.
    subnet: u8,
    next: AtomicU8,
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    /// The first node, without pods.
    pub fn new() -> Self {
        Self::numbered(1)
    }

    /// The node with this number, from 1 on, without pods: the second is `node-2`, its pods are in 10.77.1.0/24 and
    /// fd77:0:0:1::/64.
    pub fn numbered(number: u8) -> Self {
        let namespace = Namespace::new("node");
        let subnet = number - 1;
        let folder = tempfile::Builder::new().prefix("mesh-test-").tempdir().expect("a scratch folder");
        std::fs::create_dir(folder.path().join("manifests")).expect("an empty folder");
        let (name, ca_root) = (format!("node-{number}"), folder.path().join("ca"));
        let node = Self { name, namespace, folder, ca_root, subnet, next: AtomicU8::new(2) };
        let (v4, v6) = (node.v4(), node.v6());
        node.namespace.batch(&format!(
            "link add br0 type bridge\n\
             addr add {v4}/24 dev br0\n\
             addr add {v6}/64 dev br0 nodad\n\
             link set br0 up\n"
        ));
        node
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.v4_of(1)
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.v6_of(1)
    }

    /// The networks that its pods are in: a /24 and a /64.
    pub fn subnet(&self) -> (Ipv4Addr, Ipv6Addr) {
        (self.v4_of(0), self.v6_of(0))
    }

    fn v4_of(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.subnet, host)
    }

    fn v6_of(&self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, u16::from(self.subnet), 0, 0, 0, u16::from(host))
    }

    /// A new pod, with the next address of the node, and default routes through the node.
    pub fn pod(&self, name: &str) -> Arc<Pod> {
        self.pod_at(name, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A new pod whose addresses end in `host`: another pod's, if that one is gone.
    pub fn pod_at(&self, name: &str, host: u8) -> Arc<Pod> {
        let namespace = Namespace::new(name);
        let (v4, v6) = (self.v4_of(host), self.v6_of(host));
        self.namespace.batch(&format!(
            "link add veth{host} type veth peer name eth0 netns {}\nlink set veth{host} master br0 up\n",
            namespace.name
        ));
        namespace.batch(&format!(
            "addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {}\n\
             route add default via {}\n\
             route add unreachable 10.99.0.0/16\n",
            self.v4(),
            self.v6()
        ));
        Arc::new(Pod { name: name.to_owned(), v4, v6, node: self.name.clone(), namespace })
    }

    /// Folder of the manifests.
    pub fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    /// Replaces a file of the manifests, as `kubectl` and editors do: at once.
    pub fn write(&self, file: &str, text: &str) {
        let new = self.folder.path().join("new.yaml");
        std::fs::write(&new, text).expect("scratch space");
        std::fs::rename(&new, self.manifests().join(file)).expect("scratch space");
    }

    /// Removes a file of the manifests.
    pub fn remove(&self, file: &str) {
        std::fs::remove_file(self.manifests().join(file)).expect("it was there");
    }

    /// Writes the namespace [`NAMESPACE`], enrolled, and the pods in it, as `pods.yaml`.
    pub fn enrol(&self, pods: &[&Pod]) {
        self.enrol_with(&[], pods);
    }

    /// The same with further annotations on the namespace, such as `("mode", "strict")`.
    pub fn enrol_with(&self, annotations: manifest::Annotations<'_>, pods: &[&Pod]) {
        let mut all = vec![("mesh", "enabled")];
        all.extend_from_slice(annotations);
        self.write_pods(&all, pods);
    }

    /// Writes the namespace [`NAMESPACE`] with these annotations and the pods in it, as `pods.yaml`.
    pub fn write_pods(&self, annotations: manifest::Annotations<'_>, pods: &[&Pod]) {
        self.write("pods.yaml", &manifest::pods(annotations, pods));
    }

    /// Starts the agent and waits until it is ready.
    pub fn start(&self) -> Agent {
        Agent::start(self, &[])
    }

    /// The same with further arguments.
    pub fn start_with(&self, arguments: &[&str]) -> Agent {
        Agent::start(self, arguments)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The last mount of it goes, and with it every pin and every link.
        let _ = nix::mount::umount2(&self.folder.path().join("bpf"), nix::mount::MntFlags::MNT_DETACH);
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("iproute2");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Namespaces of test processes that were killed.
fn remove_what_the_dead_left() {
    let Ok(entries) = std::fs::read_dir(NETNS) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}
