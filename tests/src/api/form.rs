//! The forms in which a stored object goes out: as an item of a list, as the object of an event, or its metadata only.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::{entry::Entry, event, kinds::Kind, status::Failure};

/// What the client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Whole,
    /// `PartialObjectMetadata`.
    Metadata,
}

impl Form {
    /// The first of the media types accepted that is served.
    pub(super) fn accepted(accept: Option<&str>) -> Result<Self, Failure> {
        let accept = accept.unwrap_or("*/*");
        let form = |media: &str| {
            let mut parts = media.split(';').map(str::trim);
            if !matches!(parts.next()?, "application/json" | "*/*" | "application/*") {
                return None;
            }
            match parts.find_map(|part| part.strip_prefix("as=")) {
                None => Some(Self::Whole),
                Some("PartialObjectMetadataList" | "PartialObjectMetadata") => Some(Self::Metadata),
                Some(_) => None,
            }
        };
        accept.split(',').find_map(form).ok_or_else(Failure::not_acceptable)
    }
}

const METADATA: &[u8] = br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":"#;

/// The object by itself.
pub(super) fn object(kind: &Kind, entry: &Entry, form: Form) -> Vec<Bytes> {
    match form {
        Form::Metadata => vec![Bytes::from_static(METADATA), entry.metadata(), Bytes::from_static(b"}")],
        Form::Whole if kind.is_view() => vec![seen(kind, entry).json.clone()],
        Form::Whole => vec![entry.json.clone()],
    }
}

/// The object in a list: built-in kinds say kind and apiVersion at its head only.
pub(super) fn item(kind: &Kind, entry: &Entry, form: Form) -> Vec<Bytes> {
    if form == Form::Metadata || kind.custom.is_some() {
        return object(kind, entry, form);
    }
    let rest = if kind.is_view() { seen(kind, entry).untyped() } else { entry.untyped() };
    vec![Bytes::from_static(b"{"), rest]
}

/// The object as the kind asked for has it.
pub(super) fn value(kind: &Kind, entry: &Entry) -> Value {
    let value = entry.value();
    if kind.is_view() { event::from_core(value) } else { value }
}

fn seen(kind: &Kind, entry: &Entry) -> Entry {
    Entry::new(kind, entry.version, &value(kind, entry))
}

/// The object as it was when a change elsewhere took it away from its watcher: with the version of that change.
pub(super) fn at_version(kind: &Kind, entry: &Entry, version: u64) -> Entry {
    let mut value = value(kind, entry);
    value["metadata"]["resourceVersion"] = version.to_string().into();
    Entry::new(kind, version, &value)
}

/// A bookmark's object: what an empty one looks like, and the version.
pub(super) fn bookmark(kind: &Kind, version: u64, initial_end: bool) -> Bytes {
    let mut object = kind.zero();
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".to_owned(), version.to_string().into());
    if initial_end {
        metadata.insert("annotations".to_owned(), serde_json::json!({"k8s.io/initial-events-end": "true"}));
    }
    object["metadata"] = metadata.into();
    Entry::new(kind, version, &object).json.clone()
}
