//! PeerAuthentications, AuthorizationPolicies and the annotation `mesh-agent.io/mode` to one policy per workload.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{Input, problem};
use crate::{
    discovery::{
        Site,
        object::{AuthorizationPolicy, Loaded, Object, PeerAuthentication, Pod, Settings},
    },
    model::{
        Action, Authorization, Condition, DEFAULT_TRUST_DOMAIN, InboundPolicy, Mode, Pattern, Problem, Reason, Severity,
    },
};

#[cfg(test)]
mod tests;

/// Policies that workloads have, each once: workloads with the same one share it, from snapshot to snapshot.
pub(super) type Interned = HashSet<Arc<InboundPolicy>>;

/// All policies of the input, by namespace.
pub(super) struct Policies<'a> {
    root: &'a str,
    modes: HashMap<&'a str, Vec<(&'a Loaded, &'a PeerAuthentication)>>,
    authorizations: HashMap<&'a str, Vec<Selectable<'a>>>,
    namespaces: HashMap<&'a str, (&'a Loaded, Mode)>,
    /// What was joined before in this round, by what it was joined of.
    joined: HashMap<Parts, Arc<InboundPolicy>>,
    before: &'a Interned,
    pub(super) interned: Interned,
    conflicts: BTreeSet<(String, String)>,
    pub(super) problems: Vec<Problem>,
}

struct Selectable<'a> {
    policy: &'a AuthorizationPolicy,
    /// With the mesh's own trust domain.
    authorization: Arc<Authorization>,
}

/// The modes of a workload and the places of its authorizations, those of its namespace before those of the root.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Parts {
    namespace: Box<str>,
    mode: Mode,
    ports: Vec<(u16, Mode)>,
    authorizations: Vec<usize>,
}

/// Who says what in one scope.
struct Claim<'a> {
    by: &'a Loaded,
    field: &'static str,
    mode: Option<Mode>,
    ports: &'a [(u16, Option<Mode>)],
}

const ANNOTATION: &str = "metadata.annotations[mesh-agent.io/mode]";
const MTLS: &str = "spec.mtls.mode";

impl<'a> Policies<'a> {
    pub(super) fn new(input: &'a Input, site: &'a Site, before: &'a Interned) -> Self {
        let mut this = Self {
            root: &site.root_namespace,
            modes: HashMap::new(),
            authorizations: HashMap::new(),
            namespaces: HashMap::new(),
            joined: HashMap::new(),
            before,
            interned: Interned::new(),
            conflicts: BTreeSet::new(),
            problems: Vec::new(),
        };
        for loaded in &input.objects {
            let name = &loaded.key.name;
            match &*loaded.object {
                Object::Namespace(Settings { mode: Some(mode), .. }) => {
                    this.namespaces.insert(&*name.name, (loaded, *mode));
                }
                Object::PeerAuthentication(policy) => {
                    if *name.namespace == *site.root_namespace && !policy.selector.is_empty() {
                        this.problems.push(selected_in_root(loaded));
                    } else {
                        this.modes.entry(&*name.namespace).or_default().push((loaded, policy));
                    }
                }
                Object::AuthorizationPolicy(policy) if !policy.is_attached => {
                    let authorization = localized(&policy.authorization, &site.trust_domain);
                    let all = this.authorizations.entry(&*name.namespace).or_default();
                    all.push(Selectable { policy, authorization });
                }
                _ => {}
            }
        }
        // Which object is named for a decision must not depend on the order of files.
        for all in this.authorizations.values_mut() {
            all.sort_by(|a, b| a.authorization.name.cmp(&b.authorization.name));
        }
        this
    }

    /// What is allowed to reach a pod.
    pub(super) fn of(&mut self, loaded: &'a Loaded, pod: &'a Pod) -> Arc<InboundPolicy> {
        let namespace = &*loaded.key.name.namespace;
        let (mode, ports) = self.modes_of(loaded, pod);
        let authorizations = self
            .candidates(namespace)
            .enumerate()
            .filter(|(_, candidate)| candidate.policy.selector.selects(&pod.labels))
            .map(|(at, _)| at)
            .collect();
        let parts = Parts { namespace: namespace.into(), mode, ports, authorizations };
        if let Some(known) = self.joined.get(&parts) {
            return Arc::clone(known);
        }
        let policy = self.join(&parts);
        let policy = match self.interned.get(&policy).or_else(|| self.before.get(&policy)) {
            Some(known) => Arc::clone(known),
            None => Arc::new(policy),
        };
        self.interned.insert(Arc::clone(&policy));
        self.joined.insert(parts, Arc::clone(&policy));
        policy
    }

    /// AuthorizationPolicies of a namespace and of the root, in a fixed order.
    fn candidates(&self, namespace: &str) -> impl Iterator<Item = &Selectable<'a>> {
        let of = |namespace: &str| self.authorizations.get(namespace).map_or(&[][..], Vec::as_slice);
        let root = if namespace == self.root { &[][..] } else { of(self.root) };
        of(namespace).iter().chain(root)
    }

    fn join(&self, parts: &Parts) -> InboundPolicy {
        let mut policy = InboundPolicy { mode: parts.mode, ports: parts.ports.clone(), ..InboundPolicy::default() };
        let selected = self.candidates(&parts.namespace).enumerate();
        for (_, candidate) in selected.filter(|(at, _)| parts.authorizations.binary_search(at).is_ok()) {
            let authorization = Arc::clone(&candidate.authorization);
            match authorization.action {
                _ if authorization.is_dry_run => policy.audit.push(authorization),
                Action::Audit => policy.audit.push(authorization),
                Action::Allow => policy.allow.push(authorization),
                Action::Deny => policy.deny.push(authorization),
            }
        }
        policy
    }

    /// The modes of a workload: of the narrowest scope that sets one.
    fn modes_of(&mut self, loaded: &'a Loaded, pod: &'a Pod) -> (Mode, Vec<(u16, Mode)>) {
        let namespace = &*loaded.key.name.namespace;
        let mut inherited = Mode::default();
        let mut ports = Vec::new();
        for scope in [self.mesh(), self.namespace(namespace), self.workload(loaded, pod)] {
            self.note_conflicts(&scope);
            ports = scope
                .iter()
                .flat_map(|claim| claim.ports.iter().map(|(port, _)| *port))
                .collect::<BTreeSet<u16>>()
                .into_iter()
                .filter_map(|port| Some((port, strictest(scope.iter().map(|claim| claim.of_port(port)))?)))
                .collect();
            inherited = strictest(scope.iter().map(|claim| claim.mode)).unwrap_or(inherited);
        }
        ports.retain(|(_, mode)| *mode != inherited);
        (inherited, ports)
    }

    fn mesh(&self) -> Vec<Claim<'a>> {
        self.unselected(self.root)
    }

    fn namespace(&self, namespace: &str) -> Vec<Claim<'a>> {
        let mut claims = if namespace == self.root { Vec::new() } else { self.unselected(namespace) };
        let annotation = self.namespaces.get(namespace);
        claims.extend(annotation.map(|(by, mode)| Claim { by, field: ANNOTATION, mode: Some(*mode), ports: &[] }));
        claims
    }

    fn workload(&self, loaded: &'a Loaded, pod: &'a Pod) -> Vec<Claim<'a>> {
        let all = self.modes.get(&*loaded.key.name.namespace).map_or(&[][..], Vec::as_slice);
        let is_ours = |policy: &PeerAuthentication| !policy.selector.is_empty() && policy.selector.selects(&pod.labels);
        let selected = all.iter().filter(|(_, policy)| is_ours(policy));
        let mut claims: Vec<_> = selected.map(|(by, policy)| Claim::of(by, policy)).collect();
        let own = pod.settings.mode;
        claims.extend(own.map(|mode| Claim { by: loaded, field: ANNOTATION, mode: Some(mode), ports: &[] }));
        claims
    }

    fn unselected(&self, namespace: &str) -> Vec<Claim<'a>> {
        let all = self.modes.get(namespace).map_or(&[][..], Vec::as_slice);
        let unselected = all.iter().filter(|(_, policy)| policy.selector.is_empty());
        unselected.map(|(by, policy)| Claim::of(by, policy)).collect()
    }

    /// Each pair of objects that differ is noted once, at the one that gives way.
    fn note_conflicts(&mut self, scope: &[Claim<'a>]) {
        let Some(strictest) = strictest(scope.iter().map(|claim| claim.mode)) else { return };
        let Some(winner) = scope.iter().find(|claim| claim.mode == Some(strictest)) else { return };
        for claim in scope {
            let Some(mode) = claim.mode.filter(|mode| *mode != strictest) else { continue };
            let message = format!("{mode} gives way to {strictest} of {} ({})", winner.by.key, winner.by.location);
            if self.conflicts.insert((claim.by.key.to_string(), message.clone())) {
                let conflict = problem(Reason::PolicyConflict, claim.by, claim.field, message);
                self.problems.push(Problem { severity: Severity::Warning, ..conflict });
            }
        }
    }
}

impl<'a> Claim<'a> {
    fn of(by: &'a Loaded, policy: &'a PeerAuthentication) -> Self {
        Self { by, field: MTLS, mode: policy.mode, ports: &policy.ports }
    }

    /// What it says of a port, by name or as one of all.
    fn of_port(&self, port: u16) -> Option<Mode> {
        self.ports.iter().find(|(own, _)| *own == port).and_then(|(_, mode)| *mode).or(self.mode)
    }
}

fn strictest(modes: impl Iterator<Item = Option<Mode>>) -> Option<Mode> {
    modes.flatten().max_by_key(|mode| match mode {
        Mode::Disabled => 0,
        Mode::Permissive => 1,
        Mode::Strict => 2,
    })
}

fn selected_in_root(loaded: &Loaded) -> Problem {
    let message = "a selector in the root namespace selects nothing, as in Istio".into();
    let mut problem = problem(Reason::PolicyUnsupported, loaded, "spec.selector", message);
    problem.remedy = "Move it to the namespace of the workloads, or remove the selector to mean the whole mesh.".into();
    problem
}

/// In policies, `cluster.local` means the mesh's own trust domain, whatever it is called, as in Istio.
fn localized(authorization: &Arc<Authorization>, trust_domain: &str) -> Arc<Authorization> {
    let renamed = |pattern: &Pattern| {
        let (Pattern::Exact(text) | Pattern::Prefix(text)) = pattern else { return None };
        let rest = text.strip_prefix(DEFAULT_TRUST_DOMAIN)?.strip_prefix('/')?;
        let text = format!("{trust_domain}/{rest}").into();
        Some(if matches!(pattern, Pattern::Exact(_)) { Pattern::Exact(text) } else { Pattern::Prefix(text) })
    };
    if trust_domain == DEFAULT_TRUST_DOMAIN {
        return Arc::clone(authorization);
    }
    let mut localized = Authorization::clone(authorization);
    for rule in &mut localized.rules {
        let sources = rule.from.iter_mut().map(|source| &mut source.principals);
        let conditions = rule.when.iter_mut().filter_map(|condition| match condition {
            Condition::Principal(values) => Some(values),
            _ => None,
        });
        for values in sources.chain(conditions) {
            for pattern in values.any.iter_mut().chain(&mut values.not) {
                if let Some(renamed) = renamed(pattern) {
                    *pattern = renamed;
                }
            }
        }
    }
    Arc::new(localized)
}
