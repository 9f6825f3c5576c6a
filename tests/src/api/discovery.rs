//! Discovery documents, plain and aggregated, of the kinds that are served: never of more.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::kinds::Kind;

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const STATUS_VERBS: [&str; 3] = ["get", "patch", "update"];

/// Content type of an aggregated document.
pub(super) const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Does the client take an aggregated document?
pub(super) fn wants_aggregated(accept: Option<&str>) -> bool {
    let aggregated = |media: &str| {
        ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"].iter().all(|part| media.contains(part))
    };
    accept.and_then(|accept| accept.split(',').next()).is_some_and(aggregated)
}

/// `/api`.
pub(super) fn core(address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`.
pub(super) fn groups(kinds: &[Arc<Kind>]) -> Value {
    let groups: Vec<_> = names(kinds).into_iter().filter_map(|name| group(kinds, name)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP` and an item of `/apis`.
pub(super) fn group(kinds: &[Arc<Kind>], name: &str) -> Option<Value> {
    let versions: Vec<_> = versions(kinds, name)
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    let preferred = versions.first()?.clone();
    Some(json!({"name": name, "versions": versions, "preferredVersion": preferred}))
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub(super) fn resources(kinds: &[Arc<Kind>], group: &str, version: &str) -> Option<Value> {
    let of = kinds.iter().filter(|kind| kind.group == group && kind.version == version);
    let mut resources: Vec<_> = of.flat_map(|kind| std::iter::once(resource(kind)).chain(subresources(kind))).collect();
    resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let mut list = json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": resources});
    if !group.is_empty() {
        list["apiVersion"] = "v1".into();
    }
    (list["resources"] != json!([])).then_some(list)
}

/// `/api` or `/apis` in one document.
pub(super) fn aggregated(kinds: &[Arc<Kind>], core: bool) -> Value {
    let names = if core { vec![""] } else { names(kinds) };
    let items: Vec<_> = names.into_iter().map(|name| aggregated_group(kinds, name)).collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_group(kinds: &[Arc<Kind>], name: &str) -> Value {
    let versions: Vec<_> = versions(kinds, name)
        .into_iter()
        .map(|version| {
            let mut of: Vec<_> = kinds.iter().filter(|kind| kind.group == name && kind.version == version).collect();
            of.sort_by(|a, b| a.plural.cmp(&b.plural));
            let resources: Vec<_> = of.into_iter().map(|kind| aggregated_resource(kind)).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let metadata = if name.is_empty() { json!({}) } else { json!({"name": name}) };
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(kind: &Kind) -> Value {
    let response = |plain: &Value| {
        json!({
            "group": plain.get("group").unwrap_or(&json!("")), "version": plain.get("version").unwrap_or(&json!("")),
            "kind": plain["kind"],
        })
    };
    let plain = resource(kind);
    let mut aggregated = json!({
        "resource": kind.plural, "responseKind": response(&plain), "singularResource": kind.singular,
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" }, "verbs": plain["verbs"],
    });
    for optional in ["shortNames", "categories"] {
        if let Some(value) = plain.get(optional) {
            aggregated[optional] = value.clone();
        }
    }
    let subresources: Vec<_> = subresources(kind)
        .iter()
        .map(|plain| {
            let name = plain["name"].as_str().and_then(|name| name.split_once('/')).map(|(_, name)| name);
            json!({"subresource": name, "responseKind": response(plain), "verbs": plain["verbs"]})
        })
        .collect();
    if !subresources.is_empty() {
        aggregated["subresources"] = subresources.into();
    }
    aggregated
}

fn resource(kind: &Kind) -> Value {
    let verbs: &[&str] = match kind.kind.as_str() {
        _ if kind.review => &["create"],
        "Namespace" if kind.custom.is_none() => &["create", "delete", "get", "list", "patch", "update", "watch"],
        _ => &VERBS,
    };
    let mut resource = json!({
        "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
        "verbs": verbs,
    });
    if !kind.short.is_empty() {
        resource["shortNames"] = json!(kind.short);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    if !kind.review {
        let id = format!("{}/{}/{}", kind.group, kind.version, kind.kind);
        let hash = digest(&SHA256, id.as_bytes());
        resource["storageVersionHash"] = STANDARD.encode(hash.as_ref().get(..8).unwrap_or_default()).into();
    }
    resource
}

fn subresources(kind: &Kind) -> Vec<Value> {
    let mut all = Vec::new();
    if kind.status {
        all.push(json!({
            "name": format!("{}/status", kind.plural), "singularName": "", "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": STATUS_VERBS,
        }));
    }
    if kind.is("ServiceAccount") {
        all.push(json!({
            "name": "serviceaccounts/token", "singularName": "", "namespaced": true,
            "group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest", "verbs": ["create"],
        }));
    }
    all
}

fn names(kinds: &[Arc<Kind>]) -> Vec<&str> {
    unique(kinds.iter().map(|kind| kind.group.as_str()).filter(|group| !group.is_empty()))
}

fn versions<'a>(kinds: &'a [Arc<Kind>], group: &str) -> Vec<&'a str> {
    unique(kinds.iter().filter(|kind| kind.group == group).map(|kind| kind.version.as_str()))
}

fn unique<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    all.fold(Vec::new(), |mut seen, one| {
        if !seen.contains(&one) {
            seen.push(one);
        }
        seen
    })
}
