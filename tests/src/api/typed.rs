//! Built-in objects against their types: k8s-openapi decodes them, what it does not know is dropped, as the real server
//! drops it, or refused with `fieldValidation=Strict`.

use k8s_openapi::{
    api::{
        apps::v1 as apps, authentication::v1 as authentication, authorization::v1 as authorization, batch::v1 as batch,
        coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery, events::v1 as events,
        rbac::v1 as rbac,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{kinds::Kind, status::Failure};

/// Takes unknown fields out. `strict`: refuses them.
pub(super) fn prune(kind: &Kind, object: &mut Value, strict: bool) -> Result<(), Failure> {
    let decode: fn(&Value) -> Result<Value, serde_json::Error> = match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "ConfigMap") => through::<core::ConfigMap>,
        ("", "Event") => through::<core::Event>,
        ("", "Namespace") => through::<core::Namespace>,
        ("", "Node") => through::<core::Node>,
        ("", "Pod") => through::<core::Pod>,
        ("", "Secret") => through::<core::Secret>,
        ("", "Service") => through::<core::Service>,
        ("", "ServiceAccount") => through::<core::ServiceAccount>,
        ("apps", "DaemonSet") => through::<apps::DaemonSet>,
        ("apps", "Deployment") => through::<apps::Deployment>,
        ("authentication.k8s.io", "TokenReview") => through::<authentication::TokenReview>,
        ("authentication.k8s.io", "SelfSubjectReview") => through::<authentication::SelfSubjectReview>,
        ("authorization.k8s.io", "SelfSubjectAccessReview") => through::<authorization::SelfSubjectAccessReview>,
        ("authorization.k8s.io", "SubjectAccessReview") => through::<authorization::SubjectAccessReview>,
        ("batch", "Job") => through::<batch::Job>,
        ("coordination.k8s.io", "Lease") => through::<coordination::Lease>,
        ("discovery.k8s.io", "EndpointSlice") => through::<discovery::EndpointSlice>,
        ("events.k8s.io", "Event") => through::<events::Event>,
        ("rbac.authorization.k8s.io", "ClusterRole") => through::<rbac::ClusterRole>,
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => through::<rbac::ClusterRoleBinding>,
        ("rbac.authorization.k8s.io", "Role") => through::<rbac::Role>,
        ("rbac.authorization.k8s.io", "RoleBinding") => through::<rbac::RoleBinding>,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => through::<apiextensions::CustomResourceDefinition>,
        _ => return Err(Failure::unsupported(format!("types of {}", kind.kind))),
    };
    let head = format!("{} in version {:?} cannot be handled as a {}", kind.kind, kind.version, kind.kind);
    let known = decode(object).map_err(|error| Failure::bad_request(format!("{head}: {error}")))?;
    let mut unknown = Vec::new();
    intersect(object, &known, "", &mut unknown);
    if strict && !unknown.is_empty() {
        let all: Vec<_> = unknown.iter().map(|field| format!("unknown field {field:?}")).collect();
        return Err(Failure::bad_request(format!("{head}: strict decoding error: {}", all.join(", "))));
    }
    Ok(())
}

fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Result<Value, serde_json::Error> {
    // By reference, so that the text of the value is not made: T reads the tree.
    serde_json::to_value(T::deserialize(object)?)
}

/// Keeps of `object` what `known` has too. Nulls are absent.
fn intersect(object: &mut Value, known: &Value, path: &str, unknown: &mut Vec<String>) {
    match (object, known) {
        (Value::Object(fields), Value::Object(known)) => {
            fields.retain(|name, value| {
                let keep = known.contains_key(name);
                if !keep && !value.is_null() {
                    unknown.push(format!("{path}{name}"));
                }
                keep
            });
            for (name, value) in fields {
                if let Some(known) = known.get(name) {
                    intersect(value, known, &format!("{path}{name}."), unknown);
                }
            }
        }
        (Value::Array(items), Value::Array(known)) => {
            for (index, (item, known)) in items.iter_mut().zip(known).enumerate() {
                let path = format!("{}[{index}].", path.trim_end_matches('.'));
                intersect(item, known, &path, unknown);
            }
        }
        _ => {}
    }
}
