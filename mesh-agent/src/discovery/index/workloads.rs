//! Pods and their namespaces to workloads.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use super::{
    Input, claims,
    policies::{Interned, Policies},
    problem,
};
use crate::{
    discovery::{
        Site,
        object::{Loaded, Object, Pod, Settings},
    },
    model::{Exclusions, Identity, InboundPolicy, Mesh, ObjectName, Problem, Reason, Workload},
};

/// Namespaces and workloads.
pub(super) struct Workloads {
    pub(super) namespaces: BTreeMap<Arc<str>, bool>,
    pub(super) by_name: BTreeMap<ObjectName, Arc<Workload>>,
    /// Their policies.
    pub(super) policies: Interned,
}

/// Builds the workloads of all pods that live. `addresses` are those that pods own, by name of the pod.
pub(super) fn build(
    input: &Input,
    before: &Mesh,
    site: &Site,
    addresses: &HashMap<&ObjectName, Vec<IpAddr>>,
    policies: &Interned,
    problems: &mut Vec<Problem>,
) -> Workloads {
    let node = &*site.node;
    let mut policies = Policies::new(input, site, policies);
    let mut settings = HashMap::new();
    let mut namespaces = BTreeMap::new();
    for loaded in &input.objects {
        if let Object::Namespace(own) = &*loaded.object {
            settings.insert(&*loaded.key.name.name, own);
            namespaces.insert(Arc::clone(&loaded.key.name.name), own.mesh.unwrap_or(false));
        }
    }
    let none = Settings::default();
    let mut by_name = BTreeMap::new();
    let netns_owners = settle_netns(input, before, node);
    for (loaded, pod) in live_pods(input) {
        let name = &loaded.key.name;
        namespaces.entry(Arc::clone(&name.namespace)).or_insert(false);
        let owned = addresses.get(name).cloned().unwrap_or_default();
        if owned.is_empty() && !pod.addresses.is_empty() && !pod.host_network {
            // It lost all its addresses to others: there is nothing left that could be told to be its own.
            continue;
        }
        let inherited = settings.get(&*name.namespace).copied().unwrap_or(&none);
        let mut workload = workload(site, loaded, pod, inherited, owned, policies.of(loaded, pod));
        if !workload.is_on(node) {
            workload.netns = None;
            workload.uid = None;
        }
        let owner = workload.netns.as_deref().and_then(|path| netns_owners.get(path)).filter(|owner| **owner != name);
        if let Some(owner) = owner {
            problems.push(shared_netns(loaded, pod, owner));
            workload.netns = None;
        } else if workload.enrolled && workload.is_on(node) {
            problems.extend(cannot_be_captured(loaded, pod, &workload, input));
        }
        let workload = match before.workloads.get(name) {
            Some(before) if **before == workload => Arc::clone(before),
            _ => Arc::new(workload),
        };
        by_name.insert(name.clone(), workload);
    }
    problems.append(&mut policies.problems);
    Workloads { namespaces, by_name, policies: policies.interned }
}

/// Pods that have not finished.
pub(super) fn live_pods(input: &Input) -> impl Iterator<Item = (&Loaded, &Pod)> {
    input.objects.iter().filter_map(|loaded| match &*loaded.object {
        Object::Pod(pod) if !pod.finished => Some((loaded, pod)),
        _ => None,
    })
}

/// The addresses that a pod claims for itself; one of the node's network has none of its own.
pub(super) fn claimed(pod: &Pod) -> &[IpAddr] {
    if pod.host_network { &[] } else { &pod.addresses }
}

fn workload(
    site: &Site,
    loaded: &Loaded,
    pod: &Pod,
    inherited: &Settings,
    addresses: Vec<IpAddr>,
    policy: Arc<InboundPolicy>,
) -> Workload {
    fn first<T: Clone>(own: Option<&T>, inherited: Option<&T>) -> Option<T> {
        own.or(inherited).cloned()
    }
    let own = &pod.settings;
    Workload {
        name: loaded.key.name.clone(),
        identity: Arc::new(Identity {
            trust_domain: Arc::clone(&site.trust_domain),
            namespace: Arc::clone(&loaded.key.name.namespace),
            service_account: Arc::clone(&pod.service_account),
        }),
        node: pod.node.clone(),
        addresses,
        netns: own.netns.as_ref().filter(|_| !pod.host_network).map(|netns| netns.path.clone()),
        uid: pod.uid.clone(),
        host_network: pod.host_network,
        enrolled: own.mesh.or(inherited.mesh).unwrap_or(false),
        mode: policy.kernel_mode(),
        policy,
        exclusions: Exclusions {
            outbound_ports: first(own.outbound_ports.as_ref(), inherited.outbound_ports.as_ref()).unwrap_or_default(),
            inbound_ports: first(own.inbound_ports.as_ref(), inherited.inbound_ports.as_ref()).unwrap_or_default(),
            outbound_cidrs: first(own.outbound_cidrs.as_ref(), inherited.outbound_cidrs.as_ref()).unwrap_or_default(),
            inbound_cidrs: first(own.inbound_cidrs.as_ref(), inherited.inbound_cidrs.as_ref()).unwrap_or_default(),
        },
        location: loaded.location.clone(),
    }
}

/// The pod of this node that each named network namespace belongs to.
fn settle_netns<'a>(input: &'a Input, before: &Mesh, node: &str) -> HashMap<&'a Path, &'a ObjectName> {
    let is_here = |pod: &Pod| !pod.host_network && pod.node.as_deref().is_none_or(|own| own == node);
    let claims: Vec<(&Path, &ObjectName)> = live_pods(input)
        .filter(|(_, pod)| is_here(pod))
        .filter_map(|(loaded, pod)| Some((pod.settings.netns.as_ref()?.path.as_path(), &loaded.key.name)))
        .collect();
    let held = |path: &&Path, name: &&ObjectName| {
        before.workloads.get(*name).is_some_and(|workload| workload.netns.as_deref() == Some(*path))
    };
    let owners = claims::settle(&claims, held);
    owners.into_iter().filter_map(|(path, at)| Some((path, claims.get(at)?.1))).collect()
}

const NETNS_FIELD: &str = "metadata.annotations[mesh-agent.io/netns]";

fn shared_netns(loaded: &Loaded, pod: &Pod, owner: &ObjectName) -> Problem {
    let message = format!("the network namespace is already the one of Pod {owner}");
    let mut problem = problem(Reason::BadField, loaded, NETNS_FIELD, message);
    problem.remedy = "Give each pod its own network namespace.".into();
    at_netns(problem, pod)
}

/// Why an enrolled pod of this node cannot be captured, if so.
fn cannot_be_captured(loaded: &Loaded, pod: &Pod, workload: &Workload, input: &Input) -> Option<Problem> {
    if pod.host_network {
        let message = "true: the pod has no network of its own to capture".into();
        return Some(problem(Reason::HostNetwork, loaded, "spec.hostNetwork", message));
    }
    let Some(path) = &workload.netns else {
        if workload.uid.is_some() {
            // It is found by that, or said not to be, by those who look for it.
            return None;
        }
        let message = "is missing: the agent cannot tell which network namespace is the pod's".into();
        return Some(problem(Reason::NetnsUnnamed, loaded, NETNS_FIELD, message));
    };
    if input.netns.contains_key(path) {
        return None;
    }
    let message = format!("{:?} is not a network namespace, or does not exist", path.display().to_string());
    Some(at_netns(problem(Reason::NetnsMissing, loaded, NETNS_FIELD, message), pod))
}

fn at_netns(mut problem: Problem, pod: &Pod) -> Problem {
    problem.location.line = pod.settings.netns.as_ref().map_or(problem.location.line, |netns| netns.line);
    problem
}
