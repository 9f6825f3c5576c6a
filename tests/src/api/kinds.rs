//! The kinds that are served: the built-in ones of this table, and those of CustomResourceDefinitions.

use std::sync::Arc;

use serde_json::{Value, json};

use super::schema::Schema;

/// One kind in one version.
#[derive(Clone, Debug)]
#[allow(clippy::struct_field_names, reason = "kind is what the API calls it")]
pub(super) struct Kind {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) plural: String,
    pub(super) singular: String,
    pub(super) kind: String,
    pub(super) list: String,
    pub(super) namespaced: bool,
    pub(super) short: Vec<String>,
    pub(super) categories: Vec<String>,
    /// Where objects are stored: `plural.group` of the storage.
    pub(super) collection: String,
    /// Has the subresource `status`, and keeps it apart.
    pub(super) status: bool,
    /// Counts changes of its spec.
    pub(super) generation: bool,
    /// Only created, answered and forgotten: reviews.
    pub(super) review: bool,
    /// Paths for field selectors, besides name and namespace.
    pub(super) fields: Vec<String>,
    /// Of a CustomResourceDefinition.
    pub(super) custom: Option<Arc<Custom>>,
}

/// What only custom resources have.
#[derive(Debug)]
pub(super) struct Custom {
    pub(super) schema: Schema,
}

/// A row of the table.
struct Row {
    group: &'static str,
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    short: &'static str,
    options: &'static [Option_],
    fields: &'static [&'static str],
}

/// What is not so with every kind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Option_ {
    Cluster,
    Status,
    Generation,
    All,
    Review,
}
use Option_::{All, Cluster, Generation, Review, Status};

const fn row(
    group: &'static str,
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    short: &'static str,
    options: &'static [Option_],
) -> Row {
    Row { group, plural, singular, kind, short, options, fields: &[] }
}

const fn with(mut row: Row, fields: &'static [&'static str]) -> Row {
    row.fields = fields;
    row
}

const POD: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
];
const EVENT: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];
const RBAC: &str = "rbac.authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";
/// Group of CustomResourceDefinition.
pub(super) const APIEXTENSIONS: &str = "apiextensions.k8s.io";

#[rustfmt::skip]
const TABLE: &[Row] = &[
    row("", "configmaps", "configmap", "ConfigMap", "cm", &[]),
    with(row("", "events", "event", "Event", "ev", &[]), EVENT),
    with(row("", "namespaces", "namespace", "Namespace", "ns", &[Cluster, Status]), &["status.phase"]),
    with(row("", "nodes", "node", "Node", "no", &[Cluster, Status]), &["spec.unschedulable"]),
    with(row("", "pods", "pod", "Pod", "po", &[Status, Generation, All]), POD),
    with(row("", "secrets", "secret", "Secret", "", &[]), &["type"]),
    row("", "serviceaccounts", "serviceaccount", "ServiceAccount", "sa", &[]),
    with(row("", "services", "service", "Service", "svc", &[Status, All]), &["spec.clusterIP", "spec.type"]),
    row(APIEXTENSIONS, "customresourcedefinitions", "customresourcedefinition", "CustomResourceDefinition", "crd crds",
        &[Cluster, Status, Generation]),
    row("apps", "daemonsets", "daemonset", "DaemonSet", "ds", &[Status, Generation, All]),
    row("apps", "deployments", "deployment", "Deployment", "deploy", &[Status, Generation, All]),
    row(AUTHENTICATION, "selfsubjectreviews", "selfsubjectreview", "SelfSubjectReview", "", &[Cluster, Review]),
    row(AUTHENTICATION, "tokenreviews", "tokenreview", "TokenReview", "", &[Cluster, Review]),
    row(AUTHORIZATION, "selfsubjectaccessreviews", "selfsubjectaccessreview", "SelfSubjectAccessReview", "",
        &[Cluster, Review]),
    row(AUTHORIZATION, "subjectaccessreviews", "subjectaccessreview", "SubjectAccessReview", "", &[Cluster, Review]),
    with(row("batch", "jobs", "job", "Job", "", &[Status, Generation, All]), &["status.successful"]),
    row("coordination.k8s.io", "leases", "lease", "Lease", "", &[]),
    row("discovery.k8s.io", "endpointslices", "endpointslice", "EndpointSlice", "", &[Generation]),
    with(row("events.k8s.io", "events", "event", "Event", "ev", &[]), EVENT),
    row(RBAC, "clusterrolebindings", "clusterrolebinding", "ClusterRoleBinding", "", &[Cluster]),
    row(RBAC, "clusterroles", "clusterrole", "ClusterRole", "", &[Cluster]),
    row(RBAC, "rolebindings", "rolebinding", "RoleBinding", "", &[]),
    row(RBAC, "roles", "role", "Role", "", &[]),
];

/// Groups in the order in which the real server lists them.
const ORDER: &[&str] = &[
    "",
    "apps",
    "events.k8s.io",
    AUTHENTICATION,
    AUTHORIZATION,
    "batch",
    RBAC,
    APIEXTENSIONS,
    "coordination.k8s.io",
    "discovery.k8s.io",
];

/// The built-in kinds, in the order of discovery.
pub(super) fn built_in() -> Vec<Arc<Kind>> {
    let place = |row: &Row| ORDER.iter().position(|group| *group == row.group);
    let mut rows: Vec<_> = TABLE.iter().collect();
    rows.sort_by_key(|row| place(row));
    rows.into_iter().map(|row| Arc::new(Kind::of(row))).collect()
}

impl Kind {
    fn of(row: &Row) -> Self {
        let has = |option| row.options.contains(&option);
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        // Both groups of Event are views of one storage.
        let storage = if row.plural == "events" { "" } else { row.group };
        Self {
            group: row.group.to_owned(),
            version: "v1".to_owned(),
            plural: row.plural.to_owned(),
            singular: row.singular.to_owned(),
            kind: row.kind.to_owned(),
            list: format!("{}List", row.kind),
            namespaced: !has(Cluster),
            short: words(row.short),
            categories: if has(All) { vec!["all".to_owned()] } else { Vec::new() },
            collection: format!("{}.{storage}", row.plural),
            status: has(Status),
            generation: has(Generation),
            review: has(Review),
            fields: row.fields.iter().map(|&path| path.to_owned()).collect(),
            custom: None,
        }
    }

    /// What is posted to `serviceaccounts/NAME/token`.
    pub(super) fn token_request() -> Self {
        Self::of(&row(AUTHENTICATION, "tokenrequests", "tokenrequest", "TokenRequest", "", &[Review]))
    }

    /// `v1`, or `group/v1`.
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Stored in the form of another version of itself.
    pub(super) fn is_view(&self) -> bool {
        self.group == "events.k8s.io"
    }

    /// A built-in kind of this name.
    pub(super) fn is(&self, kind: &str) -> bool {
        self.custom.is_none() && self.kind == kind
    }

    /// Deleting answers with the object, and not with a Status.
    pub(super) fn returns_deleted(&self) -> bool {
        ["Pod", "Service", "ServiceAccount", "Namespace"].iter().any(|kind| self.is(kind))
    }

    /// What the real server writes for an object that has nothing set: the ground that ownership of fields is measured
    /// from, and the shape of bookmarks.
    pub(super) fn zero(&self) -> Value {
        if self.custom.is_some() {
            return json!({});
        }
        match (self.group.as_str(), self.kind.as_str()) {
            ("", "Pod") => json!({"spec": {"containers": null}, "status": {}}),
            ("", "Namespace") => json!({"spec": {}, "status": {}}),
            ("", "Service") => json!({"spec": {}, "status": {"loadBalancer": {}}}),
            ("", "Node") => json!({"spec": {}, "status": {
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
                "nodeInfo": {
                    "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "", "osImage": "",
                    "containerRuntimeVersion": "", "kubeletVersion": "", "kubeProxyVersion": "",
                    "operatingSystem": "", "architecture": "",
                },
            }}),
            ("", "Event") => json!({
                "involvedObject": {}, "source": {}, "firstTimestamp": null, "lastTimestamp": null, "eventTime": null,
                "reportingComponent": "", "reportingInstance": "",
            }),
            ("events.k8s.io", _) => json!({
                "eventTime": null, "regarding": {}, "deprecatedSource": {}, "deprecatedFirstTimestamp": null,
                "deprecatedLastTimestamp": null,
            }),
            ("discovery.k8s.io", _) => json!({"addressType": "", "endpoints": null, "ports": null}),
            ("coordination.k8s.io", _) => json!({"spec": {}}),
            ("apps", "Deployment") => json!({"spec": {
                "selector": null, "template": {"metadata": {}, "spec": {"containers": null}}, "strategy": {},
            }, "status": {}}),
            ("apps", "DaemonSet") => json!({"spec": {
                "selector": null, "template": {"metadata": {}, "spec": {"containers": null}}, "updateStrategy": {},
            }, "status": {
                "currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0,
            }}),
            ("batch", "Job") => json!({
                "spec": {"template": {"metadata": {}, "spec": {"containers": null}}}, "status": {},
            }),
            (APIEXTENSIONS, _) => json!({
                "spec": {"group": "", "names": {"plural": "", "kind": ""}, "scope": "", "versions": null},
                "status": {
                    "conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": null,
                },
            }),
            (RBAC, "ClusterRole" | "Role") => json!({"rules": null}),
            (RBAC, _) => json!({"roleRef": {"apiGroup": "", "kind": "", "name": ""}}),
            (AUTHENTICATION | AUTHORIZATION, _) => json!({"spec": {}, "status": {}}),
            _ => json!({}),
        }
    }
}
