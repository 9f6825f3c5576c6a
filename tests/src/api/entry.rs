//! A stored object: its text, cut so that lists and watches are made of it without reading it again.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;
use serde_json::{Map, Value};

use super::{kinds::Kind, store::Key};

/// One version of one object. Immutable.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where it is in its collection.
    pub(super) key: Key,
    /// Version of the write.
    pub(super) version: u64,
    /// The object: kind and apiVersion first.
    pub(super) json: Bytes,
    /// Where the part after kind and apiVersion begins, at its comma.
    rest: usize,
    metadata: Range<usize>,
    /// For label selectors.
    pub(super) labels: BTreeMap<String, String>,
    /// For field selectors, in the order of the kind's list.
    pub(super) fields: Box<[String]>,
}

impl Entry {
    pub(super) fn new(kind: &Kind, version: u64, object: &Value) -> Self {
        let empty = Map::new();
        let object = object.as_object().unwrap_or(&empty);
        let mut json = Vec::with_capacity(1024);
        json.extend_from_slice(format!(r#"{{"kind":{:?},"apiVersion":{:?}"#, kind.kind, kind.api_version()).as_bytes());
        let rest = json.len();
        let mut metadata = 0..0;
        for (name, value) in object.iter().filter(|(name, _)| !matches!(name.as_str(), "kind" | "apiVersion")) {
            json.push(b',');
            write(&mut json, &Value::String(name.clone()));
            json.push(b':');
            let start = json.len();
            write(&mut json, value);
            if name == "metadata" {
                metadata = start..json.len();
            }
        }
        json.push(b'}');
        let head = object.get("metadata").unwrap_or(&Value::Null);
        let labels = head["labels"].as_object().unwrap_or(&empty);
        let text = |(name, value): (&String, &Value)| (name.clone(), value.as_str().unwrap_or_default().to_owned());
        Self {
            key: Key::new(head["namespace"].as_str().unwrap_or_default(), head["name"].as_str().unwrap_or_default()),
            version,
            rest,
            metadata,
            labels: labels.iter().map(text).collect(),
            fields: kind.fields.iter().map(|path| field(object, path)).collect(),
            json: json.into(),
        }
    }

    /// The object.
    pub(super) fn value(&self) -> Value {
        serde_json::from_slice(&self.json).expect("stored by us")
    }

    /// The text after `{` of an item of a list, whose kind is said once at its head.
    pub(super) fn untyped(&self) -> Bytes {
        self.json.slice((self.rest + 1).min(self.json.len() - 1)..)
    }

    /// The text of `metadata`.
    pub(super) fn metadata(&self) -> Bytes {
        self.json.slice(self.metadata.clone())
    }
}

fn write(json: &mut Vec<u8>, value: &Value) {
    serde_json::to_writer(json, value).expect("a vector takes all");
}

/// What a field selector compares with: text, or nothing.
fn field(object: &Map<String, Value>, path: &str) -> String {
    let mut steps = path.split('.');
    let mut at = steps.next().and_then(|first| object.get(first));
    for step in steps {
        at = at.and_then(|value| value.get(step));
    }
    match at {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}
