//! Authorization by the roles and bindings that are stored, as the RBAC authorizer evaluates them.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};

use super::State;

const GROUP: &str = "rbac.authorization.k8s.io";
/// Members may do everything.
pub(super) const MASTERS: &str = "system:masters";

/// Who makes a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User name.
    pub name: String,
    /// uid, empty if there is none.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What the authenticator says besides.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A request without credentials.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..Self::default()
        }
    }

    /// As a TokenReview and a SelfSubjectReview show it.
    pub(super) fn info(&self) -> Value {
        let mut info = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            info["uid"] = self.uid.clone().into();
        }
        if !self.extra.is_empty() {
            info["extra"] = json!(self.extra);
        }
        info
    }
}

/// What is to be done with what.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Action<'a> {
    pub(super) verb: &'a str,
    pub(super) group: &'a str,
    pub(super) resource: &'a str,
    pub(super) subresource: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// Of a request that is not for a resource; the others are empty but for the verb.
    pub(super) path: &'a str,
}

/// What somebody wanted to do, and whether he may.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decided {
    /// Name of the user.
    pub user: String,
    /// As RBAC names it.
    pub verb: String,
    /// API group, empty for the core.
    pub group: String,
    /// Plural, with a subresource as `pods/status`.
    pub resource: String,
    /// Empty for none.
    pub namespace: String,
    /// Empty for none.
    pub name: String,
    /// Whether he may.
    pub is_allowed: bool,
}

impl Decided {
    pub(super) fn of(user: &User, action: &Action<'_>, is_allowed: bool) -> Self {
        let resource = match action.subresource {
            "" => action.resource.to_owned(),
            subresource => format!("{}/{subresource}", action.resource),
        };
        Self {
            user: user.name.clone(),
            verb: action.verb.to_owned(),
            group: action.group.to_owned(),
            resource,
            namespace: action.namespace.to_owned(),
            name: action.name.to_owned(),
            is_allowed,
        }
    }
}

/// What the authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// With the reason that access reviews show.
    Allowed(String),
    Denied,
}

/// Rules and bindings, read from their objects.
#[derive(Debug, Default)]
pub(super) struct Policy {
    /// By kind, namespace and name.
    roles: BTreeMap<(&'static str, String, String), Vec<Rule>>,
    bindings: Vec<Binding>,
}

#[derive(Debug)]
struct Rule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    names: Vec<String>,
    paths: Vec<String>,
}

#[derive(Debug)]
struct Binding {
    kind: &'static str,
    /// Empty: for the whole cluster.
    namespace: String,
    name: String,
    role: (&'static str, String),
    subjects: Vec<Subject>,
}

#[derive(Debug)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl Policy {
    /// Reads all that is stored.
    pub(super) fn read(state: &State) -> Self {
        let all = |plural: &str| {
            let entries = state.store.objects(&format!("{plural}.{GROUP}"), None, None);
            entries.map(|(key, entry)| (key.clone(), entry.value())).collect::<Vec<_>>()
        };
        let mut policy = Self::default();
        for (kind, plural) in [("ClusterRole", "clusterroles"), ("Role", "roles")] {
            for (key, role) in all(plural) {
                let rules = role["rules"].as_array().into_iter().flatten().map(Rule::read).collect();
                policy.roles.insert((kind, key.namespace, key.name), rules);
            }
        }
        for (kind, plural) in [("ClusterRoleBinding", "clusterrolebindings"), ("RoleBinding", "rolebindings")] {
            for (key, binding) in all(plural) {
                let role = if binding["roleRef"]["kind"] == "Role" { "Role" } else { "ClusterRole" };
                policy.bindings.push(Binding {
                    kind,
                    namespace: key.namespace,
                    name: key.name,
                    role: (role, text(&binding["roleRef"]["name"])),
                    subjects: binding["subjects"].as_array().into_iter().flatten().map(Subject::read).collect(),
                });
            }
        }
        policy
    }

    /// May `user` do it?
    pub(super) fn authorize(&self, user: &User, action: &Action<'_>) -> Verdict {
        if user.groups.iter().any(|group| group == MASTERS) {
            return Verdict::Allowed(String::new());
        }
        for binding in &self.bindings {
            if !binding.namespace.is_empty() && binding.namespace != action.namespace {
                continue;
            }
            let Some(subject) = binding.subjects.iter().find(|subject| subject.is(user)) else { continue };
            let namespace = if binding.role.0 == "Role" { binding.namespace.clone() } else { String::new() };
            let role = self.roles.get(&(binding.role.0, namespace, binding.role.1.clone()));
            if role.into_iter().flatten().any(|rule| rule.allows(action)) {
                return Verdict::Allowed(binding.reason(subject));
            }
        }
        Verdict::Denied
    }
}

impl Rule {
    fn read(rule: &Value) -> Self {
        Self {
            verbs: strings(&rule["verbs"]),
            groups: strings(&rule["apiGroups"]),
            resources: strings(&rule["resources"]),
            names: strings(&rule["resourceNames"]),
            paths: strings(&rule["nonResourceURLs"]),
        }
    }

    fn allows(&self, action: &Action<'_>) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|one| one == "*" || one == wanted);
        if !has(&self.verbs, action.verb) {
            return false;
        }
        if !action.path.is_empty() {
            let fits = |path: &String| match path.strip_suffix('*') {
                Some(prefix) => action.path.starts_with(prefix),
                None => path == action.path,
            };
            return self.paths.iter().any(fits);
        }
        let resource = |wanted: &String| match (action.subresource, wanted.as_str()) {
            (_, "*") => true,
            ("", wanted) => wanted == action.resource,
            (subresource, wanted) => match wanted.split_once('/') {
                Some(("*", sub)) => sub == subresource,
                Some((resource, sub)) => resource == action.resource && sub == subresource,
                None => false,
            },
        };
        has(&self.groups, action.group)
            && self.resources.iter().any(resource)
            && (self.names.is_empty() || self.names.iter().any(|name| name == action.name))
    }
}

impl Subject {
    fn read(subject: &Value) -> Self {
        Self { kind: text(&subject["kind"]), name: text(&subject["name"]), namespace: text(&subject["namespace"]) }
    }

    fn is(&self, user: &User) -> bool {
        match self.kind.as_str() {
            "User" => self.name == user.name,
            "Group" => user.groups.contains(&self.name),
            "ServiceAccount" => user.name == format!("system:serviceaccount:{}:{}", self.namespace, self.name),
            _ => false,
        }
    }
}

impl Binding {
    fn reason(&self, subject: &Subject) -> String {
        let who = match subject.kind.as_str() {
            "ServiceAccount" => format!("ServiceAccount {:?}", format!("{}/{}", subject.name, subject.namespace)),
            kind => format!("{kind} {:?}", subject.name),
        };
        let name =
            if self.namespace.is_empty() { self.name.clone() } else { format!("{}/{}", self.name, self.namespace) };
        format!("RBAC: allowed by {} {name:?} of {} {:?} to {who}", self.kind, self.role.0, self.role.1)
    }
}

/// What the authorizer's refusal says.
pub(super) fn refusal(user: &User, action: &Action<'_>) -> String {
    if !action.path.is_empty() {
        return format!("User {:?} cannot {} path {:?}", user.name, action.verb, action.path);
    }
    let resource = match action.subresource {
        "" => action.resource.to_owned(),
        subresource => format!("{}/{subresource}", action.resource),
    };
    let place = match action.namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    format!("User {:?} cannot {} resource {resource:?} in API group {:?} {place}", user.name, action.verb, action.group)
}

/// What every cluster has: roles and bindings of the bootstrap policy that clients of ours come across.
pub(super) fn bootstrap() -> Vec<Value> {
    let role = |name: &str, rules: Value| json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules});
    let binding = |name: &str, groups: &[&str]| {
        let subject = |group: &&str| json!({"kind": "Group", "apiGroup": GROUP, "name": group});
        json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": name},
            "subjects": groups.iter().map(subject).collect::<Vec<_>>(),
        })
    };
    let discovery = [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    ];
    let public = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
    let reviews = json!([
        {"apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"], "verbs": ["create"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["create"]},
    ]);
    vec![
        role(
            "cluster-admin",
            json!([
                {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}, {"nonResourceURLs": ["*"], "verbs": ["*"]},
            ]),
        ),
        binding("cluster-admin", &[MASTERS]),
        role("system:discovery", json!([{"nonResourceURLs": discovery, "verbs": ["get"]}])),
        binding("system:discovery", &["system:authenticated"]),
        role("system:public-info-viewer", json!([{"nonResourceURLs": public, "verbs": ["get"]}])),
        binding("system:public-info-viewer", &["system:authenticated", "system:unauthenticated"]),
        role("system:basic-user", reviews),
        binding("system:basic-user", &["system:authenticated"]),
        role(
            "system:auth-delegator",
            json!([
                {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
                {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
            ]),
        ),
    ]
}

/// The policy in force, read again when what it is made of has changed.
#[derive(Debug, Default)]
pub(super) struct Cached {
    policy: Arc<Policy>,
    version: u64,
}

impl Cached {
    pub(super) fn get(state: &mut State) -> Arc<Policy> {
        let changed = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"]
            .iter()
            .map(|plural| state.store.changed(&format!("{plural}.{GROUP}")))
            .max()
            .unwrap_or_default();
        if state.policy.version < changed {
            state.policy = Self { policy: Arc::new(Policy::read(state)), version: changed };
        }
        Arc::clone(&state.policy.policy)
    }
}
