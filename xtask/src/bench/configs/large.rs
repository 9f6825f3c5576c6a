//! Our agent on a node of a large cluster, while nothing changes in it and while much does.

use std::{cell::RefCell, net::Ipv4Addr, path::PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    bench::{
        apps::{ECHO, HTTP, SINK},
        measure,
        memory::Memory,
        rig::Rig,
        suites::{Figures, Selection},
        topology::{POD_B, Topology},
    },
    lab::{
        accounts::Role,
        agent::{Agent, ENABLED, NODE, Source, Status},
        cluster::{API_SERVER, CHURN, Cluster, Service},
        kubelet::Kubelet,
        network,
        process::Process,
    },
};

/// The namespace of the pods of the bench.
const NAMESPACE: &str = "bench";
/// The service that the load goes to: pod B.
pub(super) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The service whose endpoint moves.
const MOVING: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);
/// Its port.
const MOVING_PORT: u16 = 9100;

/// How connections are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// By the kernel.
    Direct,
    /// Through the agent.
    Relay,
}

/// What changes in the cluster meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Changes {
    /// Nothing.
    None,
    /// Slices that agents don't watch: what costs nothing but the API server and who changes them.
    Unwatched,
    /// Endpoints of all services.
    Watched,
}

/// A second of changes, as `mesh-test-churn` says.
#[derive(Debug, Default, Deserialize)]
struct Second {
    seconds: f64,
    made: u64,
    failed: u64,
    first_error: Option<String>,
    late_us: Percentiles,
    answered_us: Percentiles,
}

/// Lengths of time.
#[derive(Debug, Default, Deserialize)]
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// What `mesh-test-churn flip` found.
#[derive(Debug, Deserialize)]
struct Flips {
    moved: u64,
    lost: u64,
    back: u64,
    connections: u64,
    failed: u64,
    first_error: Option<String>,
    total_us: Percentiles,
    request_us: Percentiles,
}

/// The agent, the API server, who changes what is in it, and what stands for the kubelet. Dropped in this order.
pub(super) struct Large {
    path: Path,
    changes: Changes,
    changer: Option<Process>,
    agent: Agent,
    cluster: Cluster,
    /// Lines of the changer that are accounted for, and the agent's snapshots at that time.
    before: RefCell<(usize, u64)>,
    _kubelet: Kubelet,
}

impl Large {
    /// Starts all, and waits until the agent has read the cluster and the pods are captured.
    ///
    /// # Errors
    /// They don't get there.
    pub(super) fn start(rig: &Rig, topology: &Topology, path: Path, changes: Changes) -> Result<Self> {
        let node = topology.netns("n1");
        let pods = topology.pods();
        let mut kubelet = Kubelet::new("mesh-bench-pods")?;
        for pod in pods.iter().filter(|pod| pod.node == NODE) {
            let log = rig.workspace.path().join(format!("pause-{}.log", pod.name));
            kubelet.run(&rig.launch(&pod.netns, Role::Server), pod, log)?;
        }
        let program = rig.binaries.join(API_SERVER.1);
        let services = [
            Service { name: "load", address: SERVICE, ports: &[HTTP, ECHO, SINK], endpoint: POD_B },
            Service { name: "moving", address: MOVING, ports: &[MOVING_PORT], endpoint: POD_B },
        ];
        let folder = rig.workspace.path().join("api");
        let objects = (NAMESPACE, &pods[..], &services[..]);
        let cluster = Cluster::start(&rig.launch(&node, Role::Cluster), &program, folder, rig.crowd, objects)?;
        let kubeconfig = cluster.kubeconfig();
        let direct = if path == Path::Direct { "--direct=on" } else { "--direct=off" };
        let launch = rig.launch(&node, Role::Proxy);
        let source = Source::Kubernetes(&kubeconfig);
        let agent = Agent::start(&launch, &rig.workspace, rig.agent.clone(), NODE, &source, &[direct])?;
        agent.await_pods(NAMESPACE, &ENABLED)?;
        let mut large =
            Self { path, changes, changer: None, agent, cluster, before: RefCell::default(), _kubelet: kubelet };
        if changes != Changes::None {
            large.changer = Some(large.change(rig, &node)?);
        }
        large.mark()?;
        Ok(large)
    }

    fn change(&self, rig: &Rig, node: &str) -> Result<Process> {
        let mut args: Vec<PathBuf> = vec!["steady".into(), "--directory".into(), self.cluster.folder().into()];
        args.extend(["--rate".into(), rig.changes.to_string().into()]);
        if self.changes == Changes::Unwatched {
            args.push("--unwatched".into());
        }
        let log = rig.workspace.path().join("changes.log");
        let mut changer = rig.launch(node, Role::Changer).start(&rig.binaries.join(CHURN.1), args, log)?;
        crate::lab::poll("changes", std::time::Duration::from_mins(1), || {
            if let Some(status) = changer.ended()? {
                bail!("it ended: {status}");
            }
            Ok(changer.log().contains('\n').then_some(()))
        })
        .with_context(|| changer.last_words())?;
        Ok(changer)
    }

    /// From here on.
    fn mark(&self) -> Result<()> {
        let lines = self.changer.as_ref().map_or(0, |changer| changer.log().lines().count());
        *self.before.borrow_mut() = (lines, self.agent.status()?.node.snapshot);
        Ok(())
    }

    /// The agent's process.
    pub(super) fn pid(&self) -> u32 {
        self.agent.pid()
    }

    /// The end of its log.
    pub(super) fn last_words(&self) -> String {
        self.agent.last_words()
    }

    /// What is asked of a large cluster, beside the load that went before: changes made during it, CPU and memory without
    /// it, and how long a change takes.
    ///
    /// # Errors
    /// A change failed or a connection did, or the configuration was not what its name says.
    pub(super) fn figures(
        &self,
        rig: &Rig,
        topology: &Topology,
        only: &Selection,
        figures: &mut Figures,
    ) -> Result<()> {
        let mut put = |metric: &str, value: f64| {
            if only.reports(metric) {
                figures.put(metric, value);
            }
        };
        put("sync.ready_ms", self.agent.ready_after().as_secs_f64() * 1e3);
        self.load_was_as_told(rig, &mut put)?;
        if only.runs("quiet") {
            let measured = measure::quiet(rig)?;
            put("quiet.agent_cores", measured.cores(Role::Proxy));
            put("quiet.api_cores", measured.cores(Role::Cluster));
            put("quiet.changer_cores", measured.cores(Role::Changer));
            put("quiet.rss_kb", Memory::of(&[self.agent.pid()])?.rss_kb as f64);
            put("quiet.noise", measured.noise);
        }
        if only.runs("flip") {
            let before = client(&self.agent.status()?)?;
            let found = self.flip(rig, topology)?;
            let after = client(&self.agent.status()?)?;
            let (direct, relayed) = ((after.0 - before.0) as f64, (after.1 - before.1) as f64);
            put("flip.p50", found.total_us.p50);
            put("flip.p90", found.total_us.p90);
            put("flip.p99", found.total_us.p99);
            put("flip.max", found.total_us.max);
            put("flip.request_p50", found.request_us.p50);
            put("flip.request_p99", found.request_us.p99);
            put("flip.count", found.moved as f64);
            put("flip.connections", found.connections as f64);
            put("flip.direct_share", direct / (direct + relayed).max(1.0));
            put("flip.back", found.back as f64);
            let errors = found.lost + found.failed;
            put("flip.errors", errors as f64);
            if errors > 0 {
                let first = found.first_error.unwrap_or_default();
                bail!("{} changes without effect, {} connections failed: {first}", found.lost, found.failed);
            }
        }
        Ok(())
    }

    /// Changes came at the rate that was asked for, and the agent took note of them, or did not.
    fn load_was_as_told(&self, rig: &Rig, put: &mut dyn FnMut(&str, f64)) -> Result<()> {
        let Some(changer) = &self.changer else { return Ok(()) };
        let (lines, snapshot) = *self.before.borrow();
        let log = changer.log();
        let seconds = log.lines().skip(lines).map(serde_json::from_str::<Second>).collect::<Result<Vec<_>, _>>();
        let seconds = seconds.with_context(|| changer.last_words())?;
        let (time, made) = (
            seconds.iter().map(|second| second.seconds).sum::<f64>(),
            seconds.iter().map(|second| second.made).sum::<u64>(),
        );
        let most = |of: fn(&Second) -> f64| seconds.iter().map(of).fold(0.0, f64::max);
        let published = self.agent.status()?.node.snapshot - snapshot;
        put("changes.per_s", made as f64 / time.max(1e-9));
        put("changes.published_s", published as f64 / time.max(1e-9));
        put("changes.late_p99", most(|second| second.late_us.p99));
        put("changes.late_max", most(|second| second.late_us.max));
        put("changes.answered_p99", most(|second| second.answered_us.p99));
        if let Some(error) = seconds.iter().find_map(|second| second.first_error.as_ref()) {
            bail!("{} changes failed: {error}", seconds.iter().map(|second| second.failed).sum::<u64>());
        }
        let is_slow = (made as f64) < 0.5 * rig.changes * time;
        // Several changes may be published at once, and some of what the agent itself writes is.
        let is_seen = published > made / 20;
        if made == 0 || is_slow || is_seen != (self.changes == Changes::Watched) {
            bail!("not what was to be measured: {made} changes in {time:.1} s, {published} states published");
        }
        Ok(())
    }

    fn flip(&self, rig: &Rig, topology: &Topology) -> Result<Flips> {
        let pods = topology.pods();
        let of = |name: &str| pods.iter().find(|pod| pod.name == name);
        let (from, one) = (of("a").context("pod a")?, of("b").context("pod b")?);
        let local = |name: &str| !["a", "b", "c"].contains(&name);
        let other =
            pods.iter().find(|pod| pod.node == NODE && local(&pod.name)).context("--pods must be at least 3")?;
        let server = |pod: &crate::lab::manifests::Pod| {
            ["--server".to_owned(), format!("{}={}", network::path(&pod.netns).display(), pod.address)]
        };
        let mut args = vec!["flip".to_owned(), "--directory".to_owned(), self.cluster.folder().display().to_string()];
        args.extend(["--client".to_owned(), network::path(&from.netns).display().to_string()]);
        args.extend(server(one).into_iter().chain(server(other)));
        args.extend([
            "--service".to_owned(),
            format!("{MOVING}:{MOVING_PORT}"),
            "--slice".to_owned(),
            "moving".to_owned(),
        ]);
        args.extend(["--flips".to_owned(), rig.flips.to_string()]);
        let netns = topology.netns("n1");
        // It stands for pods, and is charged as they are.
        let mut command = rig.launch(&netns, Role::Client).command(&rig.binaries.join(CHURN.1));
        let text = crate::command::output(command.args(args))?;
        serde_json::from_str(&text).with_context(|| format!("mesh-test-churn flip said: {text}"))
    }

    /// By the agent's own books.
    pub(super) fn verify(&self) -> Result<()> {
        let (direct, relayed) = client(&self.agent.status()?)?;
        let well = match self.path {
            // Whatever is not decided yet goes through the agent.
            Path::Direct => direct > relayed,
            Path::Relay => direct == 0 && relayed > 0,
        };
        if !well {
            bail!("not what was to be measured ({:?}): {direct} direct, {relayed} relayed connections", self.path);
        }
        Ok(())
    }
}

/// Direct and relayed connections of the client.
fn client(status: &Status) -> Result<(u64, u64)> {
    let of = |name: &crate::lab::agent::ObjectName| name.namespace == NAMESPACE && name.name == "a";
    let pod = status.pods.iter().find(|pod| of(&pod.name)).context("pod a is not in the agent's status")?;
    Ok((pod.direct_total, pod.outbound.total))
}
