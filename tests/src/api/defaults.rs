//! What the real server puts into built-in objects that does not come from the client: defaults, which their writer then
//! owns, and what its strategies set, which nobody does.

use serde_json::{Map, Value, json};

use super::kinds::Kind;

/// Defaults of the type.
pub(super) fn fill(kind: &Kind, object: &mut Value) {
    if kind.custom.is_some() {
        return;
    }
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Namespace") => {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        }
        ("", "Pod") => {
            pod(&mut object["spec"]);
            default(&mut object["spec"], "enableServiceLinks", json!(true));
        }
        ("batch", "Job") => job(&mut object["spec"]),
        ("", "Service") => service(&mut object["spec"]),
        ("", "Secret") => default(object, "type", json!("Opaque")),
        ("events.k8s.io", _) => {
            default(object, "deprecatedSource", json!({}));
            default(object, "deprecatedFirstTimestamp", Value::Null);
            default(object, "deprecatedLastTimestamp", Value::Null);
        }
        ("", "Event") => {
            for (name, value) in
                [("source", json!({})), ("firstTimestamp", Value::Null), ("lastTimestamp", Value::Null)]
            {
                default(object, name, value);
            }
            for (name, value) in
                [("eventTime", Value::Null), ("reportingComponent", json!("")), ("reportingInstance", json!(""))]
            {
                default(object, name, value);
            }
        }
        ("discovery.k8s.io", _) => {
            for port in each(object, "/ports") {
                default(port, "name", json!(""));
                default(port, "protocol", json!("TCP"));
            }
            default(object, "endpoints", Value::Null);
            default(object, "ports", Value::Null);
        }
        ("apiextensions.k8s.io", _) => {
            let kind = object["spec"]["names"]["kind"].as_str().unwrap_or_default().to_owned();
            let names = &mut object["spec"]["names"];
            default(names, "singular", kind.to_lowercase().into());
            default(names, "listKind", format!("{kind}List").into());
            default(&mut object["spec"], "conversion", json!({"strategy": "None"}));
        }
        ("rbac.authorization.k8s.io", "ClusterRole" | "Role") => default(object, "rules", Value::Null),
        ("rbac.authorization.k8s.io", _) => {
            for subject in each(object, "/subjects") {
                if matches!(subject["kind"].as_str(), Some("User" | "Group")) {
                    default(subject, "apiGroup", json!("rbac.authorization.k8s.io"));
                }
            }
            default(&mut object["roleRef"], "apiGroup", json!("rbac.authorization.k8s.io"));
        }
        _ => {}
    }
}

/// What a create sets besides.
pub(super) fn prepare(kind: &Kind, object: &mut Value) {
    if kind.custom.is_some() {
        remove(object, "status");
        return;
    }
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Namespace") => {
            default(&mut object["spec"], "finalizers", json!(["kubernetes"]));
            object["status"] = json!({"phase": "Active"});
        }
        ("", "Pod") => {
            object["status"] = json!({"phase": "Pending", "qosClass": quality(&object["spec"])});
            admitted(&mut object["spec"]);
        }
        ("", "Service") => object["status"] = json!({"loadBalancer": {}}),
        ("batch", "Job") => {
            object["status"] = json!({});
            selected(object);
        }
        ("apiextensions.k8s.io", _) => {
            let version = object["spec"]["versions"]
                .as_array()
                .and_then(|versions| versions.iter().find(|version| version["storage"] == true))
                .map_or(Value::Null, |version| version["name"].clone());
            object["status"] = json!({
                "conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": [version],
            });
        }
        // A kubelet registers with its status.
        ("", "Node") => {}
        _ if kind.status => object["status"] = kind.zero().get("status").cloned().unwrap_or_else(|| json!({})),
        _ => {}
    }
}

/// The nulls that Go writes for what it has no omission of.
pub(super) fn nulls(kind: &Kind, object: &mut Value) {
    if kind.is("Pod") {
        for condition in each(object, "/status/conditions") {
            default(condition, "lastProbeTime", Value::Null);
            default(condition, "lastTransitionTime", Value::Null);
        }
        if object["status"].is_null() {
            object["status"] = json!({});
        }
    }
}

/// Of a Pod, and of the template of one.
fn pod(spec: &mut Value) {
    for (name, value) in [
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("securityContext", json!({})),
        ("schedulerName", json!("default-scheduler")),
    ] {
        default(spec, name, value);
    }
    for list in ["/containers", "/initContainers", "/ephemeralContainers"] {
        for container in each(spec, list) {
            let tag = container["image"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
            let latest = !tag.contains('@') && tag.split_once(':').is_none_or(|(_, tag)| tag == "latest");
            default(container, "imagePullPolicy", json!(if latest { "Always" } else { "IfNotPresent" }));
            default(container, "resources", json!({}));
            default(container, "terminationMessagePath", json!("/dev/termination-log"));
            default(container, "terminationMessagePolicy", json!("File"));
            for port in each(container, "/ports") {
                default(port, "protocol", json!("TCP"));
            }
        }
    }
}

fn job(spec: &mut Value) {
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        default(spec, "completions", json!(1));
    }
    let replacement = if spec["podFailurePolicy"].is_null() { "TerminatingOrFailed" } else { "Failed" };
    for (name, value) in [
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("manualSelector", json!(false)),
        ("podReplacementPolicy", json!(replacement)),
    ] {
        default(spec, name, value);
    }
    pod(&mut spec["template"]["spec"]);
}

/// The labels by which a Job knows its pods.
fn selected(object: &mut Value) {
    let (uid, name) = (object["metadata"]["uid"].clone(), object["metadata"]["name"].clone());
    if object["spec"]["manualSelector"] != true {
        object["spec"]["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
        let labels = &mut object["spec"]["template"]["metadata"]["labels"];
        for (label, value) in [
            ("batch.kubernetes.io/controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
            ("controller-uid", &uid),
            ("job-name", &name),
        ] {
            labels[label] = value.clone();
        }
    }
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    default(&mut object["metadata"], "labels", labels);
}

/// What the admission plug-ins of a default cluster add, without the volume of the service account's token.
fn admitted(spec: &mut Value) {
    let account = spec["serviceAccountName"].as_str().unwrap_or("default").to_owned();
    spec["serviceAccountName"] = account.clone().into();
    spec["serviceAccount"] = account.into();
    let toleration =
        |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
    let both = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(toleration);
    default(spec, "tolerations", json!(both));
    default(spec, "priority", json!(0));
    default(spec, "preemptionPolicy", json!("PreemptLowerPriority"));
}

fn quality(spec: &Value) -> &'static str {
    let containers = || ["containers", "initContainers"].into_iter().filter_map(|list| spec[list].as_array()).flatten();
    let asks =
        |container: &Value, what: &str| container["resources"][what].as_object().is_some_and(|all| !all.is_empty());
    let full = |container: &Value| {
        let limits = &container["resources"]["limits"];
        let requests = &container["resources"]["requests"];
        ["cpu", "memory"]
            .iter()
            .all(|name| limits.get(name).is_some() && [None, limits.get(name)].contains(&requests.get(name)))
    };
    if containers().all(full) && containers().next().is_some() {
        "Guaranteed"
    } else if containers().any(|container| asks(container, "limits") || asks(container, "requests")) {
        "Burstable"
    } else {
        "BestEffort"
    }
}

fn service(spec: &mut Value) {
    default(spec, "type", json!("ClusterIP"));
    default(spec, "sessionAffinity", json!("None"));
    if spec["type"] != "ExternalName" {
        default(spec, "internalTrafficPolicy", json!("Cluster"));
    }
    if spec["type"] == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", json!(true));
        default(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    for port in each(spec, "/ports") {
        default(port, "protocol", json!("TCP"));
        let own = port["port"].clone();
        default(port, "targetPort", own);
    }
}

/// Gives a service its address. `number` tells services apart.
pub(super) fn address(spec: &mut Value, number: u64) {
    if spec["type"] == "ExternalName" {
        return;
    }
    if spec["clusterIP"].as_str().is_none_or(str::is_empty) {
        spec["clusterIP"] = format!("10.{}.{}.{}", 96 + (number >> 16) % 16, (number >> 8) & 255, number & 255).into();
    }
    let own = json!([spec["clusterIP"]]);
    default(spec, "clusterIPs", own);
    default(spec, "ipFamilies", json!(["IPv4"]));
    default(spec, "ipFamilyPolicy", json!("SingleStack"));
}

/// Sets a field that is absent.
fn default(object: &mut Value, name: &str, value: Value) {
    if object.is_null() {
        *object = Value::Object(Map::new());
    }
    if let Some(fields) = object.as_object_mut() {
        fields.entry(name.to_owned()).or_insert(value);
    }
}

fn remove(object: &mut Value, name: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(name);
    }
}

/// The items of the list at a JSON pointer; none if there is none.
fn each<'a>(object: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    object.pointer_mut(pointer).and_then(Value::as_array_mut).into_iter().flatten()
}
