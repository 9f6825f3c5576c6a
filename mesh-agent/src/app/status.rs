//! The answer to `mesh-agent status`.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_common::{ABI_VERSION, Counters};
use nix::sys::utsname::uname;

use super::{
    audit,
    control::Control,
    pods::{Enrolled, Stage, may_be_armed},
    vouched,
};
use crate::{
    admin::{client, other_socket_path, server::Source},
    model::{
        AuthorizationStatus, CertificateSummary, DrainingAgent, HookStatus, KernelStatus, Location, NamespaceStatus,
        NodeStatus, ObjectName, PodState, PodStatus, Problem, Reason, RelayStatus, Severity, Shares, Status,
        WorkerStatus, Workload,
    },
};

/// How long a bypass makes the status unhealthy; afterwards it is a warning.
const RECENT: Duration = Duration::from_mins(1);
/// How often an apparent difference between the kernel's counters and ours is looked at again: connections may be on
/// their way from one to the other.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(40);

/// Bypasses of one pod, as last seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watched {
    unavailable: u64,
    unredirectable: u64,
    unarmed: u64,
    /// What passed until a pod was armed that ran already when it was enrolled: told, and nobody's failure.
    joining: u64,
    /// When any of the others last rose.
    rose: Option<Instant>,
}

impl Watched {
    fn new(counted: &Counters, has_joined: bool) -> Self {
        let passed = counted.out_passed_unarmed;
        let (joining, unarmed) = if has_joined { (passed, 0) } else { (0, passed) };
        Self {
            unavailable: unavailable(counted),
            unredirectable: counted.out_passed_unredirectable,
            unarmed: unarmed + counted.out_refused_unarmed,
            joining,
            rose: None,
        }
    }

    /// What is seen now, after this.
    fn then(&self, mut now: Self) -> Self {
        let failures = |watched: &Self| [watched.unavailable, watched.unredirectable, watched.unarmed];
        let has_risen = failures(&now).iter().zip(failures(self)).any(|(now, before)| *now > before);
        now.rose = if has_risen { Some(Instant::now()) } else { self.rose };
        now
    }
}

fn unavailable(c: &Counters) -> u64 {
    c.out_passed_unavailable + c.in_passed_unavailable + c.out_refused_unavailable + c.in_refused_unavailable
}

impl Control {
    /// Notices when connections bypass the mesh.
    pub(super) fn watch_bypasses(&mut self, counted: &[(ObjectName, Counters)]) {
        for (name, now) in counted {
            let has_joined = self.pods.enrolled.get(name).is_some_and(|pod| pod.has_joined);
            let seen = self.watched.entry(name.clone()).or_default();
            *seen = seen.then(Watched::new(now, has_joined));
        }
        let enrolled = &self.pods.enrolled;
        self.watched.retain(|name, _| enrolled.contains_key(name));
    }
}

/// Everything, now.
pub(super) async fn of(control: &mut Control) -> Status {
    control.watch();
    let mut pods = pods(control);
    for _ in 0..LOOKS {
        if pods.iter().all(|pod| pod.unaccounted == 0) {
            break;
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
        pods = self::pods(control);
    }
    let hooks = hooks(control);
    let workers = workers(control);
    let mut problems = control.mesh.problems.to_vec();
    problems.extend(control.pods.failed.values().cloned());
    problems.extend(control.mesh.local.values().filter_map(|workload| unknown_problem(control, workload)));
    problems.extend(hooks.iter().filter(|hook| !hook.armed).map(hook_problem));
    problems
        .extend(control.workers.iter().zip(&workers).filter_map(|(handle, w)| worker_problem(handle.is_running(), w)));
    problems.extend(pods.iter().filter_map(unaccounted_problem));
    problems.extend(control.watched.iter().flat_map(|(name, watched)| bypass_problems(name, watched)));
    problems.extend(connections_kept(control));
    problems.extend(held_back(control));
    let certificates = control.answers.certificates();
    problems.extend(vouched::problems(&certificates));
    let pods_ok = pods.iter().all(|pod| !matches!(pod.state, PodState::Failed));
    Status {
        healthy: pods_ok && problems.iter().all(|problem| problem.severity < Severity::Error),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: control.started.elapsed().as_secs(),
        rss_bytes: rss_bytes(),
        draining: draining(control).await,
        node: node(control, &pods, certificates.summary()),
        kernel: KernelStatus {
            release: uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default(),
            abi: ABI_VERSION,
            pins: control.datapath.pins().directory().display().to_string(),
            hooks,
        },
        workers,
        namespaces: namespaces(control, &pods),
        pods,
        reasons: reasons(control),
        authorizations: authorizations(control),
        problems,
    }
}

/// Agents that were relieved, in their own words.
async fn draining(control: &Control) -> Vec<DrainingAgent> {
    let mut draining = Vec::new();
    let pids = control.datapath.draining().into_iter().map(|(_, former)| former.pid);
    for pid in pids.filter(|pid| *pid != std::process::id()) {
        let socket = other_socket_path(&control.options.run_dir, pid);
        let unknown = DrainingAgent { pid, version: String::new(), open: None };
        draining.push(match tokio::time::timeout(BETWEEN_LOOKS, client::draining(&socket)).await {
            Ok(Ok(agent)) => agent,
            _ => unknown,
        });
    }
    draining
}

fn node(control: &Control, pods: &[PodStatus], certificates: CertificateSummary) -> NodeStatus {
    let mut shares = Shares::default();
    for pod in pods {
        shares.add(&pod.shares);
    }
    NodeStatus {
        name: control.mesh.node.name.to_string(),
        zone: control.mesh.node.zone.as_deref().map(str::to_owned),
        addresses: control.node_addresses.clone(),
        source: control.source.to_string(),
        source_age_ms: control.source.age().as_millis() as u64,
        snapshot: control.mesh.version,
        direct: if control.options.direct { "on" } else { "off" }.to_owned(),
        shares,
        certificates,
    }
}

pub(super) fn hooks(control: &Control) -> Vec<HookStatus> {
    let mut hooks = control.datapath.hooks();
    let armed: Vec<&Enrolled> = control.pods.enrolled.values().filter(|pod| pod.stage == Stage::Armed).collect();
    hooks.push(HookStatus {
        program: "inbound".to_owned(),
        at: match armed.len() {
            1 => "1 network namespace".to_owned(),
            n => format!("{n} network namespaces"),
        },
        armed: armed.iter().all(|pod| control.datapath.is_netns_attached(pod.cookie)),
    });
    hooks
}

fn workers(control: &Control) -> Vec<WorkerStatus> {
    let total: u64 = control.workers.iter().map(|worker| worker.counters.accepted.value()).sum();
    (0..)
        .zip(&control.workers)
        .map(|(index, worker)| {
            let counters = &worker.counters;
            let closed = counters.closed.value();
            let accepted = counters.accepted.value();
            WorkerStatus {
                worker: index,
                cpu: counters.cpu,
                open: accepted.saturating_sub(closed),
                accepted,
                share: if total == 0 { 0.0 } else { accepted as f64 / total as f64 },
                lag_us: counters.lag_ns.value() / 1000,
                beat_age_ms: counters.beat_age_ns() / 1_000_000,
                peer_waits: counters.peer_waits.value(),
            }
        })
        .collect()
}

fn namespaces(control: &Control, pods: &[PodStatus]) -> Vec<NamespaceStatus> {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for pod in pods {
        let (all, armed) = counts.entry(&*pod.name.namespace).or_default();
        *all += 1;
        *armed += usize::from(pod.state == PodState::Armed);
    }
    let status = |(name, enrolled): (&Arc<str>, &bool)| {
        let (pods, armed) = counts.get(&**name).copied().unwrap_or_default();
        NamespaceStatus { name: name.to_string(), enrolled: *enrolled, pods, armed }
    };
    control.mesh.namespaces.iter().map(status).collect()
}

fn reasons(control: &Control) -> BTreeMap<Reason, u64> {
    let mut sum = BTreeMap::new();
    for worker in &control.workers {
        for (reason, n) in worker.counters.reasons() {
            *sum.entry(reason).or_default() += n;
        }
    }
    if control.revocations.ended() > 0 {
        *sum.entry(Reason::PolicyChanged).or_default() += control.revocations.ended();
    }
    sum
}

fn authorizations(control: &Control) -> Vec<AuthorizationStatus> {
    let mut sum = BTreeMap::new();
    for worker in &control.workers {
        worker.counters.verdicts.add_to(&mut sum);
    }
    control.revocations.verdicts().add_to(&mut sum);
    sum.into_iter().map(|(verdict, count)| AuthorizationStatus { verdict, count }).collect()
}

fn pods(control: &Control) -> Vec<PodStatus> {
    named(control).map(|(name, workload, enrolled)| describe(control, name, workload, enrolled)).collect()
}

type Named<'a> = (&'a ObjectName, Option<&'a Workload>, Option<&'a Enrolled>);

/// Pods of this node by name, with those that are deleted and still have connections.
fn named(control: &Control) -> impl Iterator<Item = Named<'_>> {
    let mesh = &control.mesh;
    let known = mesh
        .local
        .values()
        .map(|workload| (&workload.name, Some(&**workload), control.pods.enrolled.get(&workload.name)));
    let deleted = control.pods.enrolled.iter().filter(|(name, _)| !mesh.workloads.contains_key(name));
    let deleted = deleted.map(|(name, enrolled)| (name, None, Some(enrolled)));
    let mut named: Vec<Named<'_>> = known.chain(deleted).collect();
    named.sort_by_key(|(name, ..)| *name);
    named.into_iter()
}

/// How the pods of this node stand.
pub(super) fn states(control: &Control) -> impl Iterator<Item = (ObjectName, PodState)> {
    named(control).map(|(name, workload, enrolled)| (name.clone(), state(control, workload, enrolled)))
}

pub(super) fn state(control: &Control, workload: Option<&Workload>, pod: Option<&Enrolled>) -> PodState {
    match (pod.map(|pod| pod.stage), workload) {
        (Some(Stage::Armed), _) => PodState::Armed,
        (Some(_), Some(workload)) if control.pods.should_be_armed(&control.mesh, workload) => PodState::Failed,
        (Some(_), _) => PodState::Draining,
        (None, Some(workload)) if is_awaited(control, workload) => PodState::Waiting,
        (None, Some(workload)) if workload.enrolled => PodState::Failed,
        (None, _) => PodState::Off,
    }
}

/// What is wrong with a pod, beyond what is wrong with its object.
pub(super) fn problems_of(control: &Control, workload: &Workload) -> Vec<Problem> {
    let name = &workload.name;
    let mut problems: Vec<Problem> = control.pods.failed.get(name).cloned().into_iter().collect();
    problems.extend(unknown_problem(control, workload));
    problems.extend(control.watched.get(name).into_iter().flat_map(|watched| bypass_problems(name, watched)));
    problems
}

fn describe(control: &Control, name: &ObjectName, workload: Option<&Workload>, pod: Option<&Enrolled>) -> PodStatus {
    let state = state(control, workload, pod);
    let (mut outbound, mut inbound) = (RelayStatus::default(), RelayStatus::default());
    let mut c = Counters::default();
    let mut unaccounted = 0;
    let mut shares = Shares::default();
    if let Some(pod) = pod {
        unaccounted = pod.unaccounted(&control.datapath);
        c = control.datapath.counters(pod.slot).unwrap_or_default();
        (outbound, inbound) = audit::relayed(pod);
        shares = audit::shares(pod, &c.since(&pod.base));
    }
    if let Some(pending) = workload.and_then(|w| w.uid.as_ref()).and_then(|uid| control.pods.pending.get(uid)) {
        c = control.datapath.counters(pending.slot).unwrap_or_default();
    }
    let addresses =
        pod.map_or_else(|| workload.map(|w| w.addresses.clone()).unwrap_or_default(), |p| p.config.addresses.clone());
    let bypassed =
        c.out_passed_unavailable + c.out_passed_unarmed + c.out_passed_unredirectable + c.in_passed_unavailable;
    PodStatus {
        name: name.clone(),
        addresses,
        enrolled: workload.is_some_and(|workload| workload.enrolled),
        state,
        mode: workload.map(|workload| workload.mode).or(pod.map(|pod| pod.config.mode)).unwrap_or_default(),
        default_mode: workload.map(|workload| workload.policy.mode).unwrap_or_default(),
        ports: workload.map(|workload| workload.policy.ports.clone()).unwrap_or_default(),
        shares,
        outbound,
        inbound,
        direct_open: c.direct_opened.saturating_sub(c.direct_closed),
        direct_total: c.direct_opened,
        direct_bytes: c.direct_sent_bytes + c.direct_received_bytes,
        captured: c.out_redirected + c.out_direct + c.in_redirected + c.in_direct + c.in_relayed,
        passed: bypassed + c.out_excluded + c.out_no_address + c.in_node + c.in_excluded,
        bypassed,
        refused: refused(&c),
        unaccounted,
        counters: Counters::NAMES.iter().map(|name| (*name).to_owned()).zip(c.values()).collect(),
    }
}

/// Connections that were refused in the kernel.
pub(super) fn refused(c: &Counters) -> u64 {
    c.out_refused_unavailable + c.out_refused_unarmed + c.out_refused_unredirectable + c.in_refused_unavailable
}

/// Whether the workload will be armed as soon as it runs: it is found by its UID, and has no address yet, which it gets
/// when its sandbox is made, or runs no more.
fn is_awaited(control: &Control, workload: &Workload) -> bool {
    let has_ended = |uid| control.pods.networks.has_ended(uid);
    may_be_armed(&control.mesh, workload)
        && workload.netns.is_none()
        && workload.uid.as_ref().is_some_and(|uid| workload.addresses.is_empty() || has_ended(uid))
        && !control.pods.should_be_armed(&control.mesh, workload)
}

/// A workload that has an address, and so runs, and was not found.
fn unknown_problem(control: &Control, workload: &Workload) -> Option<Problem> {
    let is_found = control.pods.enrolled.contains_key(&workload.name)
        || control.pods.should_be_armed(&control.mesh, workload)
        || is_awaited(control, workload);
    let by_uid = workload.netns.is_none() && workload.uid.is_some();
    (by_uid && !is_found && may_be_armed(&control.mesh, workload)).then(|| {
        let message = "it has an address, and no process of it was found in a network namespace of its own".to_owned();
        problem(Reason::NetnsUnknown, Severity::Error, format!("Pod {}", workload.name), message)
    })
}

pub(super) fn problem(reason: Reason, severity: Severity, object: String, message: String) -> Problem {
    let remedy = reason.remedy().to_owned();
    Problem { reason, severity, location: Location::default(), object, field: String::new(), message, remedy }
}

fn hook_problem(hook: &HookStatus) -> Problem {
    let message = format!("{} is not attached to {}", hook.program, hook.at);
    problem(Reason::HookMissing, Severity::Error, format!("Hook {}", hook.program), message)
}

/// Where policies are in force and the kernel cannot end what they forbid.
fn connections_kept(control: &Control) -> Option<Problem> {
    let has_policies = || control.mesh.local.values().any(|workload| workload.policy.has_authorizations());
    (control.options.direct && control.revocations.cannot() && has_policies()).then(|| {
        let message = "open direct connections outlive a change of policy that forbids them".to_owned();
        problem(Reason::ConnectionsKept, Severity::Error, "Kernel".to_owned(), message)
    })
}

/// Where pods of an earlier agent are kept, of which it cannot be read what is wanted of them.
fn held_back(control: &Control) -> Option<Problem> {
    control.pods.holds_others.then(|| {
        let message = "pods that an earlier agent armed may be in what cannot be read: they are as without an agent";
        problem(Reason::SourceIncomplete, Severity::Error, "Source".to_owned(), message.to_owned())
    })
}

fn worker_problem(running: bool, worker: &WorkerStatus) -> Option<Problem> {
    let stuck = worker.beat_age_ms > mesh_common::WORKER_STALE_NS / 1_000_000;
    (stuck || !running).then(|| {
        let message =
            if running { format!("no beat for {} ms", worker.beat_age_ms) } else { "its thread has ended".to_owned() };
        problem(Reason::WorkerStuck, Severity::Error, format!("Worker {}", worker.worker), message)
    })
}

fn unaccounted_problem(pod: &PodStatus) -> Option<Problem> {
    (pod.unaccounted > 0).then(|| {
        let message = format!("{} connections were handed over and never dealt with", pod.unaccounted);
        problem(Reason::CaptureUnaccounted, Severity::Error, format!("Pod {}", pod.name), message)
    })
}

fn bypass_problems(name: &ObjectName, watched: &Watched) -> Vec<Problem> {
    let recent = watched.rose.is_some_and(|rose| rose.elapsed() < RECENT);
    let severity = if recent { Severity::Error } else { Severity::Warning };
    let kinds = [
        (Reason::CaptureUnavailable, severity, watched.unavailable, "passed or were refused while no worker answered"),
        (Reason::CaptureBypassed, severity, watched.unredirectable, "could not be redirected and passed unseen"),
        (Reason::CaptureUnarmed, severity, watched.unarmed, "passed or were refused before the pod was armed"),
        (Reason::CaptureUnarmed, Severity::Warning, watched.joining, "passed while the pod was joining the mesh"),
    ];
    kinds
        .into_iter()
        .filter(|(_, _, n, _)| *n > 0)
        .map(|(reason, severity, n, what)| {
            problem(reason, severity, format!("Pod {name}"), format!("{n} connections {what}"))
        })
        .collect()
}

/// Resident memory, from /proc/self/statm (proc(5)); 0 where that cannot be read.
fn rss_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    pages * page as u64
}
