//! Patches that are not applies: merge, JSON and strategic merge patch.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    shape::{Form, Shape, identity, place},
    status::Failure,
};

/// Content types of the patches.
pub(super) const JSON: &str = "application/json-patch+json";
pub(super) const MERGE: &str = "application/merge-patch+json";
pub(super) const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub(super) const APPLY: &str = "application/apply-patch+yaml";

/// Applies a JSON patch (RFC 6902).
pub(super) fn json(object: &mut Value, body: &[u8]) -> Result<(), Failure> {
    let patch: json_patch::Patch =
        serde_json::from_slice(body).map_err(|error| Failure::bad_request(error.to_string()))?;
    json_patch::patch(object, &patch).map_err(|_| Failure::rejected())
}

/// Applies a merge patch (RFC 7396).
pub(super) fn merge(object: &mut Value, patch: &Value) {
    json_patch::merge(object, patch);
}

/// Applies a strategic merge patch: as a merge patch, but lists that are maps merge item by item. Its directives are not
/// supported.
pub(super) fn strategic(shape: Shape<'_>, object: &mut Value, patch: &Value) -> Result<(), Failure> {
    match (shape.form(patch), object, patch) {
        (Form::Items(keys), Value::Array(object), Value::Array(patch)) => items(shape, &keys, object, patch),
        (Form::Set, Value::Array(object), Value::Array(patch)) => {
            let new: Vec<_> = patch.iter().filter(|item| !object.contains(item)).cloned().collect();
            object.extend(new);
            Ok(())
        }
        (_, Value::Object(object), Value::Object(patch)) => {
            for (name, value) in patch {
                if name.starts_with('$') {
                    return Err(Failure::unsupported(format!("strategic merge patch with {name}")));
                }
                if value.is_null() {
                    object.remove(name);
                } else {
                    strategic(shape.field(name).0, object.entry(name.clone()).or_insert(Value::Null), value)?;
                }
            }
            Ok(())
        }
        (_, object, patch) => {
            if directive(patch) {
                return Err(Failure::unsupported("strategic merge patch with a directive in a list"));
            }
            if patch.is_object() {
                // Nulls in what is new are dropped.
                *object = Value::Object(serde_json::Map::new());
                return strategic(shape, object, patch);
            }
            object.clone_from(patch);
            Ok(())
        }
    }
}

fn directive(value: &Value) -> bool {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(Value::as_object).any(|item| item.keys().any(|name| name.starts_with('$')))
}

/// Items of the patch come in its order, those it does not name in theirs; new ones stand before those they were put before.
fn items(shape: Shape<'_>, keys: &[String], object: &mut Vec<Value>, patch: &[Value]) -> Result<(), Failure> {
    let mut named = Vec::new();
    let mut touched = BTreeSet::new();
    for item in patch {
        let at = place(object, keys, &identity(item, keys));
        let mut merged = at.and_then(|at| object.get(at)).cloned().unwrap_or(Value::Null);
        strategic(shape.item(), &mut merged, item)?;
        touched.extend(at);
        named.push((at, merged));
    }
    let rest = object.iter().enumerate().filter(|(at, _)| !touched.contains(at));
    let mut rest = rest.map(|(at, item)| (at, item.clone())).peekable();
    let mut all = Vec::with_capacity(named.len() + object.len());
    for (at, item) in named {
        while let Some((_, other)) = rest.next_if(|(other, _)| at.is_some_and(|at| *other < at)) {
            all.push(other);
        }
        all.push(item);
    }
    all.extend(rest.map(|(_, item)| item));
    *object = all;
    Ok(())
}
