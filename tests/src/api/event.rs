//! Event has two groups and one storage: core/v1 names its fields otherwise than events.k8s.io/v1.

use serde_json::{Value, json};

/// (events.k8s.io/v1, core/v1).
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

pub(super) fn from_core(event: Value) -> Value {
    renamed(event, "events.k8s.io/v1", |name| NAMES.iter().find(|(_, core)| *core == name).map(|(new, _)| *new))
}

pub(super) fn to_core(event: Value) -> Value {
    renamed(event, "v1", |name| NAMES.iter().find(|(new, _)| *new == name).map(|(_, core)| *core))
}

fn renamed(event: Value, api_version: &str, name: impl Fn(&str) -> Option<&'static str>) -> Value {
    let Value::Object(fields) = event else { return event };
    let renamed = |(key, value): (String, Value)| (name(&key).map_or(key, str::to_owned), value);
    let mut event: Value = fields.into_iter().map(renamed).collect();
    event["apiVersion"] = json!(api_version);
    event
}
