//! Start order.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

/// Replaces the log filter; the error says what is wrong with it.
pub type SetLogFilter = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What `mesh-agent run` was told.
#[derive(Clone)]
pub struct Options {
    /// `--manifests`: the folder of manifests.
    pub manifests: PathBuf,
    /// `--node-name`, or the host name.
    pub node_name: String,
    /// `--direct`: whether connections may bypass the proxy.
    pub direct: bool,
    /// `--run-dir`: folder of the admin socket and the lock.
    pub run_dir: PathBuf,
    /// `--bpffs`: where bpffs is mounted.
    pub bpffs: PathBuf,
    /// `--cgroup`: root of the cgroup v2 tree.
    pub cgroup: PathBuf,
    /// `--workers`: 1 to [`mesh_common::maps::MAX_WORKERS`].
    pub workers: usize,
    /// `--connect-timeout`: toward upstreams; never zero.
    pub connect_timeout: Duration,
    /// `--drain-deadline`: how long open connections may go on after SIGTERM.
    pub drain_deadline: Duration,
    /// `--keepalive`: idle time before TCP keepalive probes; zero for none.
    pub keepalive: Duration,
    /// `--node-address`: addresses that pass as the node's own, beside those found on its interfaces.
    pub node_addresses: Vec<IpAddr>,
    /// `--ebpf-object`: programs to load instead of the embedded ones.
    pub ebpf_object: Option<PathBuf>,
    /// Replaces the log filter of the running process.
    pub set_log_filter: SetLogFilter,
}

/// Runs the agent until SIGTERM or SIGINT.
#[expect(clippy::needless_pass_by_value, reason = "the agent keeps them")]
pub fn run(options: Options) -> anyhow::Result<()> {
    anyhow::bail!("not built yet: {} cannot be served", options.manifests.display())
}
