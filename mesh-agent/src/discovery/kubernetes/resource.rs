//! What is watched: of which kinds which objects, and what is kept of each.

use std::fmt::Write;

use super::trim::Keep;
use crate::discovery::object::Kind;

/// Of all objects: who it is. The annotation of bookmarks marks the end of what was there before.
const METADATA: Keep = Keep::Fields(&[
    ("name", Keep::All),
    ("namespace", Keep::All),
    ("uid", Keep::All),
    ("resourceVersion", Keep::All),
    ("labels", Keep::Prefixes(&["mesh-agent.io/", "kubernetes.io/service-name", "topology.kubernetes.io/zone"])),
    ("annotations", ANNOTATIONS),
]);
/// Pods are selected by any label.
const POD_METADATA: Keep = Keep::Fields(&[
    ("name", Keep::All),
    ("namespace", Keep::All),
    ("uid", Keep::All),
    ("resourceVersion", Keep::All),
    ("labels", Keep::All),
    ("annotations", ANNOTATIONS),
]);
const ANNOTATIONS: Keep = Keep::Prefixes(&[
    "mesh-agent.io/",
    "istio.io/dry-run",
    "kubernetes.io/config.hash",
    "kubernetes.io/config.mirror",
    "k8s.io/initial-events-end",
]);
const POD_SPEC: Keep = Keep::Fields(&[
    ("nodeName", Keep::All),
    ("serviceAccountName", Keep::All),
    ("serviceAccount", Keep::All),
    ("hostNetwork", Keep::All),
]);
const POD_STATUS: Keep = Keep::Fields(&[("phase", Keep::All), ("podIP", Keep::All), ("podIPs", Keep::All)]);
const SERVICE_SPEC: Keep = Keep::Fields(&[
    ("type", Keep::All),
    ("clusterIP", Keep::All),
    ("clusterIPs", Keep::All),
    ("sessionAffinity", Keep::All),
    ("trafficDistribution", Keep::All),
    ("internalTrafficPolicy", Keep::All),
    ("ports", Keep::Each(&PORT)),
]);
const PORT: Keep = Keep::Fields(&[("name", Keep::All), ("protocol", Keep::All), ("port", Keep::All)]);
const ENDPOINT: Keep =
    Keep::Fields(&[("addresses", Keep::All), ("conditions", Keep::All), ("nodeName", Keep::All), ("zone", Keep::All)]);

/// A watched kind.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    /// In paths.
    plural: &'static str,
    /// The path of its group and version; of several, the one that is served first.
    pub(super) groups: &'static [&'static str],
    /// Narrows the watch, as part of a query.
    pub(super) selector: String,
    /// What is kept of a line of a watch.
    pub(super) keep_event: Keep,
    /// And of a page of a list.
    pub(super) keep_page: Keep,
}

/// The constants of a kind. An error in a watch is a `Status` in place of the object.
macro_rules! resource {
    ($kind:ident, $plural:literal, $groups:expr, $selector:expr, [$($field:expr),* $(,)?]) => {{
        const OBJECT: Keep = Keep::Fields(&[$($field),*]);
        const EVENT: Keep = Keep::Fields(&[
            ("type", Keep::All),
            ("object", Keep::Fields(&[
                $($field,)*
                ("code", Keep::All), ("reason", Keep::All), ("message", Keep::All), ("details", Keep::All),
            ])),
        ]);
        const PAGE: Keep = Keep::Fields(&[
            ("metadata", Keep::Fields(&[("resourceVersion", Keep::All), ("continue", Keep::All)])),
            ("items", Keep::Each(&OBJECT)),
        ]);
        Resource {
            kind: Kind::$kind,
            plural: $plural,
            groups: &$groups,
            selector: $selector,
            keep_event: EVENT,
            keep_page: PAGE,
        }
    }};
}

const CORE: [&str; 1] = ["/api/v1"];
const SECURITY: [&str; 2] = ["/apis/security.istio.io/v1", "/apis/security.istio.io/v1beta1"];

/// Pods that are on a node and have not finished.
const LIVING: &str = "&fieldSelector=status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed%2Cspec.nodeName%21%3D";

/// All that is watched for the node of this name.
///
/// No ServiceAccounts: an identity is made of the name that the pod gives. Of the Nodes only this one: the zones of others'
/// endpoints are in the EndpointSlices, and Nodes change often. No slices of headless services, which have no address that
/// could be sent to, nor pods without a node, or that have finished and given theirs back.
pub(super) fn all(node: &str) -> Vec<Resource> {
    let none = String::new;
    vec![
        resource!(Namespace, "namespaces", CORE, none(), [("metadata", METADATA)]),
        resource!(
            Node,
            "nodes",
            CORE,
            format!("&fieldSelector=metadata.name%3D{}", encoded(node)),
            [("metadata", METADATA), ("status", Keep::Fields(&[("addresses", Keep::All)])),]
        ),
        resource!(
            Pod,
            "pods",
            CORE,
            LIVING.to_owned(),
            [("metadata", POD_METADATA), ("spec", POD_SPEC), ("status", POD_STATUS)]
        ),
        resource!(Service, "services", CORE, none(), [("metadata", METADATA), ("spec", SERVICE_SPEC)]),
        resource!(
            EndpointSlice,
            "endpointslices",
            ["/apis/discovery.k8s.io/v1"],
            "&labelSelector=%21service.kubernetes.io%2Fheadless".to_owned(),
            [
                ("metadata", METADATA),
                ("addressType", Keep::All),
                ("ports", Keep::Each(&PORT)),
                ("endpoints", Keep::Each(&ENDPOINT)),
            ]
        ),
        resource!(
            PeerAuthentication,
            "peerauthentications",
            SECURITY,
            none(),
            [("metadata", METADATA), ("spec", Keep::All)]
        ),
        resource!(
            AuthorizationPolicy,
            "authorizationpolicies",
            SECURITY,
            none(),
            [("metadata", METADATA), ("spec", Keep::All)]
        ),
    ]
}

/// As it is written in a query.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._".contains(&byte) {
            encoded.push(byte.into());
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

impl Resource {
    /// Whether a cluster may be without it: it is defined by a custom resource.
    pub(super) fn is_optional(&self) -> bool {
        self.groups.len() > 1
    }

    /// Its name as permissions give it.
    pub(super) fn plural(&self) -> &'static str {
        self.plural
    }

    /// The path of all objects, in the group and version at this index.
    pub(super) fn path(&self, group: usize) -> String {
        format!("{}/{}", self.groups.get(group).copied().unwrap_or_default(), self.plural)
    }
}
