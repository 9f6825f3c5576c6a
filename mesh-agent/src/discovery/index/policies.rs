//! PeerAuthentications, AuthorizationPolicies and the annotation `mesh-agent.io/mode` to one policy per workload.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    intern::Pool,
    objects::Objects,
    problems::{in_order_of_place, problem},
};
use crate::{
    discovery::{
        Site,
        object::{AuthorizationPolicy, Key, Kind, Loaded, Object, PeerAuthentication, Pod},
    },
    model::{
        Action, Authorization, Condition, DEFAULT_TRUST_DOMAIN, InboundPolicy, Mode, ObjectName, Pattern, Problem,
        Reason, Severity,
    },
};

#[cfg(test)]
mod tests;

/// All policies, by namespace.
#[derive(Debug)]
pub(super) struct Policies {
    root: Arc<str>,
    trust_domain: Arc<str>,
    modes: HashMap<Arc<str>, Vec<Loaded>>,
    authorizations: HashMap<Arc<str>, Vec<Selectable>>,
    namespaces: HashMap<Arc<str>, Loaded>,
    /// What was joined already, by what it was joined of; void when policies change.
    joined: HashMap<Parts, Arc<InboundPolicy>>,
    /// Workloads with the same policy share it, from snapshot to snapshot.
    interned: Pool<InboundPolicy>,
}

#[derive(Debug)]
struct Selectable {
    object: Arc<Object>,
    /// With the mesh's own trust domain.
    authorization: Arc<Authorization>,
}

/// The modes of a workload and the places of its authorizations, those of its namespace before those of the root.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Parts {
    namespace: Arc<str>,
    mode: Mode,
    ports: Vec<(u16, Mode)>,
    authorizations: Vec<usize>,
}

/// What annotations said that cannot be read any more, as far as that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct UnreadModes {
    pub(super) namespace: Option<Mode>,
    pub(super) pod: Option<Mode>,
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

impl Policies {
    pub(super) fn new(site: &Site) -> Self {
        Self {
            root: Arc::clone(&site.root_namespace),
            trust_domain: Arc::clone(&site.trust_domain),
            modes: HashMap::new(),
            authorizations: HashMap::new(),
            namespaces: HashMap::new(),
            joined: HashMap::new(),
            interned: Pool::default(),
        }
    }

    /// Whether the namespace's policies are for the whole mesh.
    pub(super) fn is_root(&self, namespace: &str) -> bool {
        *namespace == *self.root
    }

    /// Reads the policies of a namespace anew; returns what is wrong with them by themselves.
    pub(super) fn reload(&mut self, namespace: &Arc<str>, objects: &Objects) -> Vec<Problem> {
        self.joined.clear();
        let key = Key { kind: Kind::Namespace, name: ObjectName { namespace: "".into(), name: Arc::clone(namespace) } };
        let own = objects.get(&key).filter(|own| mode_of(own).is_some());
        replace(&mut self.namespaces, namespace, own);

        let all: Vec<_> = objects.in_namespace(Kind::PeerAuthentication, namespace).collect();
        let is_root = self.is_root(namespace);
        let is_unusable =
            |loaded: &Loaded| is_root && peer_authentication(loaded).is_some_and(|policy| !policy.selector.is_empty());
        let (unusable, mut modes): (Vec<_>, Vec<_>) = all.into_iter().partition(is_unusable);
        in_order_of_place(&mut modes);
        replace(&mut self.modes, namespace, Some(modes).filter(|modes| !modes.is_empty()));

        let all = objects.in_namespace(Kind::AuthorizationPolicy, namespace);
        let mut authorizations: Vec<_> = all.filter_map(|loaded| self.selectable(loaded.object)).collect();
        // Which object is named for a decision must not depend on the order of files.
        authorizations.sort_by(|a, b| a.authorization.name.cmp(&b.authorization.name));
        replace(&mut self.authorizations, namespace, Some(authorizations).filter(|all| !all.is_empty()));
        unusable.iter().map(selected_in_root).collect()
    }

    fn selectable(&self, object: Arc<Object>) -> Option<Selectable> {
        let Object::AuthorizationPolicy(policy) = &*object else { return None };
        let authorization = localized(&policy.authorization, &self.trust_domain);
        (!policy.is_attached).then_some(Selectable { object, authorization })
    }

    /// What is allowed to reach a pod, and which objects of its own contradict each other.
    pub(super) fn of(&mut self, loaded: &Loaded, pod: &Pod, unread: UnreadModes) -> (Arc<InboundPolicy>, Vec<Problem>) {
        let namespace = &loaded.key.name.namespace;
        let (mode, ports, conflicts) = self.modes_of(loaded, pod, unread);
        let authorizations = self
            .candidates(namespace)
            .enumerate()
            .filter(|(_, candidate)| candidate.policy().is_some_and(|policy| policy.selector.selects(&pod.labels)))
            .map(|(at, _)| at)
            .collect();
        let parts = Parts { namespace: Arc::clone(namespace), mode, ports, authorizations };
        if let Some(known) = self.joined.get(&parts) {
            return (Arc::clone(known), conflicts);
        }
        let policy = self.interned.intern(&Arc::new(self.join(&parts)));
        self.joined.insert(parts, Arc::clone(&policy));
        (policy, conflicts)
    }

    /// Which objects for the whole mesh contradict each other.
    pub(super) fn conflicts_of_mesh(&self) -> Vec<Problem> {
        conflicts(&self.mesh())
    }

    /// Which objects for a whole namespace contradict each other.
    pub(super) fn conflicts_of_namespace(&self, namespace: &str) -> Vec<Problem> {
        conflicts(&self.namespace(namespace))
    }

    /// AuthorizationPolicies of a namespace and of the root, in a fixed order.
    fn candidates(&self, namespace: &str) -> impl Iterator<Item = &Selectable> {
        let of = |namespace: &str| self.authorizations.get(namespace).map_or(&[][..], Vec::as_slice);
        let root = if self.is_root(namespace) { &[][..] } else { of(&self.root) };
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

    /// The modes of a workload: of the narrowest scope that sets one. And what contradicts each other in that of its own.
    fn modes_of(&self, loaded: &Loaded, pod: &Pod, unread: UnreadModes) -> (Mode, Vec<(u16, Mode)>, Vec<Problem>) {
        let namespace = &*loaded.key.name.namespace;
        let own = self.workload(loaded, pod);
        let own_conflicts = conflicts(&own);
        let mut inherited = Mode::default();
        let mut ports = Vec::new();
        let stand_in = |mode| Claim { by: loaded, field: ANNOTATION, mode, ports: &[] };
        for (mut scope, unread) in
            [(self.mesh(), None), (self.namespace(namespace), unread.namespace), (own, unread.pod)]
        {
            scope.extend(unread.map(|mode| stand_in(Some(mode))));
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
        (inherited, ports, own_conflicts)
    }

    fn mesh(&self) -> Vec<Claim<'_>> {
        self.unselected(&self.root)
    }

    fn namespace(&self, namespace: &str) -> Vec<Claim<'_>> {
        let mut claims = if self.is_root(namespace) { Vec::new() } else { self.unselected(namespace) };
        let annotation = self.namespaces.get(namespace);
        claims.extend(annotation.map(|by| Claim { by, field: ANNOTATION, mode: mode_of(by), ports: &[] }));
        claims
    }

    fn workload<'a>(&'a self, loaded: &'a Loaded, pod: &'a Pod) -> Vec<Claim<'a>> {
        let selected = self.claims(&loaded.key.name.namespace, |policy| {
            !policy.selector.is_empty() && policy.selector.selects(&pod.labels)
        });
        let own = pod.settings.mode;
        let own = own.map(|mode| Claim { by: loaded, field: ANNOTATION, mode: Some(mode), ports: &[] });
        selected.chain(own).collect()
    }

    fn unselected(&self, namespace: &str) -> Vec<Claim<'_>> {
        self.claims(namespace, |policy| policy.selector.is_empty()).collect()
    }

    fn claims(
        &self,
        namespace: &str,
        is_meant: impl Fn(&PeerAuthentication) -> bool,
    ) -> impl Iterator<Item = Claim<'_>> {
        let all = self.modes.get(namespace).map_or(&[][..], Vec::as_slice);
        all.iter().filter_map(move |by| {
            let policy = peer_authentication(by)?;
            is_meant(policy).then_some(Claim { by, field: MTLS, mode: policy.mode, ports: &policy.ports })
        })
    }
}

impl Selectable {
    fn policy(&self) -> Option<&AuthorizationPolicy> {
        match &*self.object {
            Object::AuthorizationPolicy(policy) => Some(policy),
            _ => None,
        }
    }
}

fn peer_authentication(loaded: &Loaded) -> Option<&PeerAuthentication> {
    match &*loaded.object {
        Object::PeerAuthentication(policy) => Some(policy),
        _ => None,
    }
}

/// What the annotation of a namespace says.
fn mode_of(namespace: &Loaded) -> Option<Mode> {
    match &*namespace.object {
        Object::Namespace(settings) => settings.mode,
        _ => None,
    }
}

fn replace<T>(by_namespace: &mut HashMap<Arc<str>, T>, namespace: &Arc<str>, value: Option<T>) {
    match value {
        Some(value) => by_namespace.insert(Arc::clone(namespace), value),
        None => by_namespace.remove(namespace),
    };
}

/// Each pair of objects that differ, at the one that gives way.
fn conflicts(scope: &[Claim<'_>]) -> Vec<Problem> {
    let Some(strictest) = strictest(scope.iter().map(|claim| claim.mode)) else { return Vec::new() };
    let Some(winner) = scope.iter().find(|claim| claim.mode == Some(strictest)) else { return Vec::new() };
    let conflict = |claim: &Claim<'_>| {
        let mode = claim.mode.filter(|mode| *mode != strictest)?;
        let message = format!("{mode} gives way to {strictest} of {} ({})", winner.by.key, winner.by.location);
        let conflict = problem(Reason::PolicyConflict, claim.by, claim.field, message);
        Some(Problem { severity: Severity::Warning, ..conflict })
    };
    scope.iter().filter_map(conflict).collect()
}

impl Claim<'_> {
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
