//! The real agent, as a process in a node's namespace.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use mesh_agent::{
    admin::client,
    model::{PodState, PodStatus, Reason, Status},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    node::{NAMESPACE, Node},
    wait::{eventually, within},
};

/// How long the agent may take to start: the kernel verifies its programs, and a debug build is slow to load them.
const START: Duration = Duration::from_mins(1);
/// Environment variable with the path of the agent; `cargo xtask test` sets it.
const MESH_AGENT_BIN: &str = "MESH_AGENT_BIN";

/// The agent's binary: as the environment says, or beside the tests.
pub fn binary() -> PathBuf {
    std::env::var_os(MESH_AGENT_BIN).map_or_else(
        || {
            // target/PROFILE/deps/TEST
            let test = std::env::current_exe().expect("Linux knows");
            test.ancestors().nth(2).unwrap_or(&test).join("mesh-agent")
        },
        PathBuf::from,
    )
}

/// Whether the kernel tier can run here.
///
/// # Errors
/// Why not.
pub fn kernel_tier() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root".to_owned());
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    if !mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2")) {
        return Err("no cgroup v2 is mounted".to_owned());
    }
    if !binary().is_file() {
        return Err(format!("{} is not there: build it, or set {MESH_AGENT_BIN}", binary().display()));
    }
    Ok(())
}

/// A running agent; killed on drop.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    run_dir: PathBuf,
    bpffs: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Starts it on the node and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready; its log is shown.
    pub fn start(node: &Node, arguments: &[&str]) -> Self {
        let mut agent = Self::spawn(node, arguments);
        agent.await_ready();
        agent
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready; its log is shown.
    pub fn await_ready(&mut self) {
        let agent = self;
        within(START, "the agent is ready", || {
            if let Some(status) = agent.child.try_wait().expect("our child") {
                panic!("the agent ended with {status}:\n{}", agent.log());
            }
            agent.is_ready().then_some(())
        });
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    /// When it does not become so.
    pub fn await_ready(&self) {
        within(START, "the agent is ready", || self.is_ready().then_some(()));
    }

    /// Starts it on the node.
    pub fn spawn(node: &Node, arguments: &[&str]) -> Self {
        Self::spawn_with(node, Self::command(node, arguments), || {})
    }

    /// Starts a command line of `run` on the node, after `prepare` has done something to the thread that does it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn_with(node: &Node, mut command: Command, prepare: impl FnOnce() + Send) -> Self {
        let folder = node.folder.path();
        let log = folder.join("agent.log");
        let err = File::options().create(true).append(true).open(&log).expect("scratch space");
        command.stdout(Stdio::null()).stderr(err).stdin(Stdio::null());
        // A child is born into the namespace of the thread that makes it.
        let spawn = || {
            prepare();
            command.spawn()
        };
        let child = node.namespace.run(spawn).expect("the agent can be started");
        Self { child, run_dir: folder.join("run"), bpffs: folder.join("bpf"), log }
    }

    /// The command line of `run` on the node, with the node's manifests unless there is another source.
    pub fn command(node: &Node, arguments: &[&str]) -> Command {
        let folder = node.folder.path();
        let mut command = Command::new(binary());
        command.arg("run");
        if !arguments.contains(&"--kubernetes") {
            command.arg("--manifests").arg(node.manifests());
        }
        command.arg("--run-dir").arg(folder.join("run")).arg("--bpffs").arg(folder.join("bpf"));
        if !arguments.iter().any(|argument| argument.starts_with("--ca-")) {
            command.arg("--ca-root").arg(&node.ca_root);
        }
        command.args(["--node-name", &node.name, "--log", "mesh_agent=debug,access=debug,info"]).args(arguments);
        command
    }

    /// Another command of the binary, such as `status`, with this agent's folders.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--run-dir").arg(&self.run_dir);
        if matches!(arguments.first(), Some(&("cleanup" | "check"))) {
            command.arg("--bpffs").arg(&self.bpffs);
        }
        command.output().expect("the agent can be started")
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Its bpffs.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Its run folder.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Whether it says so.
    pub fn is_ready(&self) -> bool {
        let answer = block_on(client::request(&self.run_dir, hyper::Method::GET, "/readyz", ""));
        // Another one may answer, from which this one is to take over.
        answer.is_ok_and(|(code, _)| code.is_success()) && self.is_in_charge()
    }

    /// Whether it is this one that answers for the node.
    pub fn is_in_charge(&self) -> bool {
        block_on(client::status(&self.run_dir)).is_ok_and(|status| status.pid == self.child.id())
    }

    /// Its status.
    ///
    /// # Panics
    /// When it does not answer; its log is shown.
    pub fn status(&self) -> Status {
        block_on(client::status(&self.run_dir)).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// A pod in its status.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn pod(&self, name: &str) -> PodStatus {
        self.find(name).unwrap_or_else(|| panic!("no pod {name} in the status"))
    }

    fn find(&self, name: &str) -> Option<PodStatus> {
        self.status().pods.into_iter().find(|pod| &*pod.name.namespace == NAMESPACE && &*pod.name.name == name)
    }

    /// A kernel counter of a pod.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn counter(&self, pod: &str, counter: &str) -> u64 {
        *self.pod(pod).counters.get(counter).unwrap_or_else(|| panic!("no counter {counter}"))
    }

    /// How many connections have ended with a reason.
    pub fn reason(&self, reason: Reason) -> u64 {
        self.status().reasons.get(&reason).copied().unwrap_or(0)
    }

    /// Waits until the pod is in the state.
    pub fn await_state(&self, pod: &str, state: PodState) {
        eventually(&format!("{pod} is {state:?}"), || self.find(pod).filter(|pod| pod.state == state).map(drop));
    }

    /// Waits until the pod has no open connection, and returns its status then.
    pub fn settled(&self, pod: &str) -> PodStatus {
        eventually(&format!("{pod} has no open connection"), || {
            self.find(pod).filter(|pod| pod.outbound.open == 0 && pod.inbound.open == 0 && pod.direct_open == 0)
        })
    }

    /// Asserts that nothing was lost, passed unseen or left open, in any pod.
    pub fn assert_all_accounted(&self) {
        for pod in self.status().pods {
            assert_eq!(pod.unaccounted, 0, "{}", pod.name);
            assert_eq!(pod.bypassed, 0, "{}: {:?}", pod.name, pod.counters);
        }
    }

    /// Waits until the snapshot is another one than `before`.
    pub fn await_snapshot(&self, before: u64) {
        eventually("another snapshot is in force", || (self.status().node.snapshot != before).then_some(()));
    }

    /// Does something to the manifests and waits until it is in force.
    pub fn after<T>(&self, change: impl FnOnce() -> T) -> T {
        let before = self.status().node.snapshot;
        let result = change();
        self.await_snapshot(before);
        result
    }

    /// Resident memory, in bytes.
    pub fn rss(&self) -> u64 {
        self.status().rss_bytes
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        kill(self.pid(), Signal::SIGTERM).expect("our child");
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not come in time.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        within(patience, "the agent ends", || self.child.try_wait().expect("our child"))
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // The test harness shows it with the failure.
            eprintln!("--- the agent's log\n{}---", self.log());
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}
