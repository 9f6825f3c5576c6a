//! Start order, top to bottom; the only module that knows every other.

mod answers;
mod audit;
mod certificates;
mod control;
mod former;
mod handover;
mod kernel;
mod networks;
mod pages;
mod pending;
mod pods;
mod process;
mod revoke;
mod source;
mod status;
mod succession;
mod takeover;
mod told;
mod vouched;

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::{mpsc, oneshot, watch};

use self::succession::{Charge, Predecessor};

use crate::{
    admin::{self, http, server::Server},
    ca,
    datapath::{self, Datapath},
    discovery,
    identity::Identities,
    kubernetes::writeback,
    model::{Certificates, Mesh},
    node, proxy,
};

pub use source::Source;

/// How long a TLS handshake with another agent may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Replaces the log filter; the error says what is wrong with it.
pub type SetLogFilter = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Says how the certificates of this node's workloads stand.
pub type ShowCertificates = Arc<dyn Fn() -> Certificates + Send + Sync>;

/// What `mesh-agent run` was told.
#[derive(Clone)]
pub struct Options {
    /// `--manifests` or `--kubernetes`: where objects come from. An API server is told of this node's pods in return.
    pub source: Source,
    /// `--node-name`, or the host name.
    pub node_name: String,
    /// `--trust-domain`: of all identities.
    pub trust_domain: String,
    /// `--ca-address`, `--ca-root`, `--spiffe-endpoint-socket`: who vouches for the identities.
    pub authority: ca::Choice,
    /// `--root-namespace`: whose policies are for the whole mesh.
    pub root_namespace: String,
    /// `--direct`: whether connections may bypass the proxy.
    pub direct: bool,
    /// `--run-dir`: folder of the admin socket and the lock.
    pub run_dir: PathBuf,
    /// `--http-address`: where probes, Prometheus and port-forwards come.
    pub http_address: http::Address,
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
    /// `--stay`: whether, once relieved by another agent, to wait for a signal before ending.
    pub stay: bool,
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
pub fn run(options: Options) -> anyhow::Result<()> {
    options.source.check()?;
    std::fs::create_dir_all(&options.run_dir)
        .with_context(|| format!("cannot make --run-dir {}", options.run_dir.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the control runtime")?;
    let pins = datapath::Pins::at(&options.bpffs);
    let charge = runtime.block_on(succession::take_charge(&options.run_dir, pins.directory()))?;
    let (run_lock, predecessor) = match charge {
        Charge::Own(lock) => (Some(lock), None),
        Charge::Anothers(predecessor) => (None, Some(predecessor)),
    };
    raise_fd_limit();

    // The programs first: nothing is captured by them until a workload is armed.
    let datapath_options = datapath::Options {
        bpffs: options.bpffs.clone(),
        cgroup: options.cgroup.clone(),
        object: options.ebpf_object.clone(),
    };
    let mut datapath = match &predecessor {
        None => Datapath::load(&datapath_options)?,
        Some(_) => Datapath::load_beside(&datapath_options)?,
    };
    if datapath.mounted_bpffs() {
        let path = admin::mounted_path(&options.run_dir);
        std::fs::write(&path, options.bpffs.as_os_str().as_encoded_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }

    // Then whoever vouches for the workloads; it need not answer yet.
    let identities = {
        let _entered = runtime.enter();
        let trust_domain = options.trust_domain.clone();
        let authority = ca::connect(&ca::Config { choice: options.authority.clone(), trust_domain })?;
        // The proxy says for itself what it speaks in a connection.
        Identities::new(authority, options.trust_domain.as_str().into(), Vec::new(), Vec::new())
    };

    // Then those who will take the connections.
    let (snapshots, for_workers) = watch::channel(Arc::new(Mesh::default()));
    let held = Arc::new(proxy::Held::default());
    let workers = start_workers(&options, &datapath, &held, &identities, &for_workers)?;
    if predecessor.is_none() {
        datapath.introduce(workers.len() as u32, options.keepalive)?;
        datapath.attach()?;
    }

    // Then the source of what is to be captured; control arms it.
    runtime.block_on(async {
        let rotation = Arc::clone(&identities);
        let mut rotation = tokio::spawn(async move { rotation.run().await });
        let (found, mesh) = watch::channel(Arc::new(Mesh::default()));
        let (tell, mut pods) = mpsc::unbounded_channel();
        let finder = node::Finder::new(&options.cgroup, tell)?;
        let mut finder = tokio::spawn(finder.run());
        // What runs already must be known before it is decided what of an earlier agent's is not wanted any more.
        let networks = networks::settled(&mut pods).await;
        let site = discovery::Site {
            node: options.node_name.as_str().into(),
            trust_domain: options.trust_domain.as_str().into(),
            root_namespace: options.root_namespace.as_str().into(),
            first_generation: first_generation(&datapath.generations(), predecessor.is_none()),
            former: Arc::new(former::former(&datapath, &networks)),
        };
        let mut source = tokio::spawn(options.source.clone().run(site, found));
        let mut log = match datapath.program_log() {
            Some(log) => tokio::spawn(log.run()),
            None => tokio::spawn(std::future::pending()),
        };
        let (ask, asked) = mpsc::channel(16);
        let certificates = vouched::show(Arc::clone(&identities), &options.authority);
        let counters = workers.iter().map(|worker| Arc::clone(&worker.counters)).collect();
        let answers = Arc::new(answers::Answers::new(ask, options.set_log_filter.clone(), certificates, counters));
        let (open, opened) = oneshot::channel();
        let mut admin = tokio::spawn(serve_socket(opened, Arc::clone(&answers)));
        let pages = Arc::new(pages::AgentPages::new(Arc::clone(&answers), &workers));
        let (close_http, closed) = oneshot::channel();
        let mut http = tokio::spawn(serve_http(options.http_address, pages, closed)?);
        let revocations = revoke::Revocations::start(datapath.flows()?).context("the thread of revocations")?;
        let (feed, mut writes) = write_back(&options).await?;
        let parts = control::Parts { datapath, workers, held, identities, revocations, feed, close_http, networks };
        let feeds = control::Feeds { found: mesh, pods, asked, signals: control::Signals::new()? };
        let control = control::Control::new(options, parts, snapshots, answers, run_lock);
        tokio::select! {
            result = serve(control, feeds, predecessor, open) => result,
            end = &mut finder => Err(anyhow::anyhow!("looking for pods ended: {end:?}")),
            end = &mut source => Err(anyhow::anyhow!("the source of objects ended: {end:?}")),
            end = &mut admin => Err(anyhow::anyhow!("the admin socket ended: {end:?}")),
            end = &mut writes => Err(anyhow::anyhow!("writing to the API server ended: {end:?}")),
            end = &mut http => Err(anyhow::anyhow!("the HTTP listener ended: {end:?}")),
            end = &mut rotation => Err(anyhow::anyhow!("the rotation of certificates ended: {end:?}")),
            end = &mut log => Err(anyhow::anyhow!("the programs' log ended: {end:?}")),
        }
    })
}

/// Who tells the API server of this node's pods; where there is none, nobody, for ever.
async fn write_back(options: &Options) -> anyhow::Result<(Option<writeback::Feed>, tokio::task::JoinHandle<()>)> {
    let Source::Kubernetes(access) = &options.source else {
        return Ok((None, tokio::spawn(std::future::pending())));
    };
    let (feed, writes) = writeback::start(access.client().await?, options.node_name.clone());
    Ok((Some(feed), tokio::spawn(writes)))
}

/// The HTTP listener; where none is wanted, nothing, for ever.
fn serve_http(
    address: http::Address,
    pages: Arc<pages::AgentPages>,
    closed: oneshot::Receiver<()>,
) -> anyhow::Result<impl Future<Output = ()> + Send> {
    let listener = match address {
        http::Address::None => None,
        http::Address::At(address) => {
            let bound = http::Listener::bind(address);
            Some(bound.with_context(|| format!("cannot listen on --http-address {address}"))?)
        }
    };
    Ok(async move {
        if let Some(listener) = listener {
            tokio::select! {
                () = listener.run(pages) => return,
                // It is for another agent now; this one has other things to end.
                Ok(()) = closed => {}
            }
        }
        std::future::pending::<()>().await;
    })
}

/// The admin socket, as soon as it is this agent's.
async fn serve_socket(opened: oneshot::Receiver<Server>, answers: Arc<answers::Answers>) {
    match opened.await {
        Ok(admin) => admin.run(answers).await,
        Err(_) => std::future::pending().await,
    }
}

/// Serves the pods until a signal, from the start or after having taken over from the agent that runs.
async fn serve(
    mut control: control::Control,
    mut feeds: control::Feeds,
    predecessor: Option<Predecessor>,
    open: oneshot::Sender<Server>,
) -> anyhow::Result<()> {
    let Some(predecessor) = predecessor else {
        control.begin().await;
        let _ = open.send(Server::bind(&control.options.run_dir)?);
        return control.run(feeds).await;
    };
    let mut signals = control::Signals::new()?;
    tokio::select! {
        prepared = control.prepare(&predecessor, &mut feeds) => prepared?,
        // The other agent has not been asked for anything.
        () = signals.next() => return Ok(()),
    }
    let _ = open.send(control.take_over(predecessor).await?);
    control.run(feeds).await
}

fn start_workers(
    options: &Options,
    datapath: &Datapath,
    held: &Arc<proxy::Held>,
    identities: &Arc<Identities>,
    mesh: &watch::Receiver<Arc<Mesh>>,
) -> anyhow::Result<Vec<proxy::WorkerHandle>> {
    let config = proxy::Config {
        connect_timeout: options.connect_timeout,
        handshake_timeout: HANDSHAKE_TIMEOUT,
        direct: options.direct,
    };
    let cpus = usable_cpus()?;
    let certificates: Arc<dyn proxy::Certificates> = Arc::new(certificates::Kept(Arc::clone(identities)));
    (0..options.workers)
        .map(|index| {
            let cpu = cpus.get(index % cpus.len().max(1)).copied().unwrap_or(0);
            let kernel = Box::new(kernel::KernelMaps(datapath.worker_maps()?));
            let (held, certificates) = (Arc::clone(held), Arc::clone(&certificates));
            proxy::spawn(index as u32, cpu, config, kernel, held, certificates, mesh.clone())
                .context("a worker's thread")
        })
        .collect()
}

/// How many generations an agent that runs may count while another one makes itself ready.
const GENERATIONS_BESIDE: u32 = 1 << 12;

/// Where this process starts to count generations: never where an earlier one did, whose decisions may be about.
fn first_generation(known: &[u32], is_alone: bool) -> u32 {
    // Seconds, so that it wraps in 2106, when what is written today is long void.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let last = known.iter().copied().max().unwrap_or(0);
    let more = if is_alone { 1 } else { GENERATIONS_BESIDE };
    now.map_or(1, |since| since.as_secs() as u32).max(last.saturating_add(more))
}

/// CPUs that this process may run on.
fn usable_cpus() -> anyhow::Result<Vec<usize>> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).context("sched_getaffinity")?;
    Ok((0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// Every relayed connection takes two descriptors: the usual limits are for programs that use select(2).
fn raise_fd_limit() {
    // The most that the kernel allows anybody (fs.nr_open, proc_sys_fs(5)); it takes CAP_SYS_RESOURCE to raise the hard
    // limit to that.
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|n| n.trim().parse().ok());
    let result = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        let most = most.unwrap_or(hard).max(hard);
        setrlimit(Resource::RLIMIT_NOFILE, most, most)
            .map(|()| most)
            .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard))
    });
    match result {
        Ok(limit) => tracing::debug!(limit, "descriptors"),
        Err(error) => tracing::warn!(%error, "the descriptor limit is left as it is"),
    }
}
