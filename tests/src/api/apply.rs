//! Server-side apply: merging a configuration into what is there, who owns what afterwards, and conflicts.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    ownership::{self, Difference, Manager, Path, Set},
    shape::{Form, Shape, identity, place},
    status::Failure,
};

/// The object that results from applying `config` to `live`, with its managers written in.
pub(super) fn apply(
    shape: Shape<'_>,
    live: &Value,
    config: &Value,
    who: Manager,
    force: bool,
) -> Result<Value, Failure> {
    unambiguous(shape, config)?;
    let mut managers = ownership::managers(live);
    let named = ownership::named(shape, config);
    let before = managers.iter().find(|manager| manager.is(&who)).cloned();
    let mut object = live.clone();
    merge(shape, &mut object, config);
    let others = |path: &Path, exact: bool| {
        managers.iter().filter(|manager| !manager.is(&who)).any(|manager| {
            manager.set.iter().any(|theirs| if exact { theirs == path } else { theirs.starts_with(path) })
        })
    };
    if let Some(before) = &before {
        // The innermost first, so that a list item goes after its fields.
        let mut dropped: Vec<_> = before.set.difference(&named).collect();
        dropped.sort_by_key(|path| std::cmp::Reverse(path.len()));
        for path in dropped {
            let inside = named.iter().any(|kept| kept.starts_with(path));
            if !inside && !others(path, true) && !others(path, false) {
                remove(shape, &mut object, path);
            }
        }
    }
    let difference = Difference::between(shape, live, &object);
    let conflicts: Vec<_> = managers
        .iter()
        .filter(|manager| !manager.is(&who))
        .flat_map(|manager| difference.set.intersection(&manager.set).map(move |path| (manager, path)))
        .collect();
    if !force && !conflicts.is_empty() {
        return Err(refuse(&conflicts));
    }
    let time = match &before {
        Some(before) if difference.is_empty() && before.set == named => before.time.clone(),
        _ => who.time.clone(),
    };
    for manager in &mut managers {
        manager.set = manager.set.difference(&difference.removed).cloned().collect::<Set>();
        if !manager.is(&who) {
            manager.set.retain(|path| !difference.set.contains(path));
        }
    }
    managers.retain(|manager| !manager.is(&who));
    managers.push(Manager { set: named, time, ..who });
    ownership::write(&mut object, managers);
    Ok(object)
}

/// Two items of one identity merge in a way that is not modelled here.
fn unambiguous(shape: Shape<'_>, value: &Value) -> Result<(), Failure> {
    match (shape.form(value), value) {
        (Form::Fields, Value::Object(fields)) => {
            fields.iter().try_for_each(|(name, value)| unambiguous(shape.field(name).0, value))
        }
        (Form::Items(keys), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                if place(items, &keys, &identity(item, &keys)) != Some(index) {
                    return Err(Failure::unsupported("apply of a list with two items of one key"));
                }
                unambiguous(shape.item(), item)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Puts everything that `config` says into `object`.
pub(super) fn merge(shape: Shape<'_>, object: &mut Value, config: &Value) {
    let form = shape.form(config);
    match (form, object, config) {
        (Form::Fields, Value::Object(object), Value::Object(config)) => {
            for (name, value) in config {
                let inner = object.entry(name.clone()).or_insert(Value::Null);
                merge(shape.field(name).0, inner, value);
            }
        }
        (Form::Items(keys), Value::Array(object), Value::Array(config)) => {
            for item in config {
                match place(object, &keys, &identity(item, &keys)) {
                    Some(at) => {
                        if let Some(existing) = object.get_mut(at) {
                            merge(shape.item(), existing, item);
                        }
                    }
                    None => object.push(item.clone()),
                }
            }
        }
        (Form::Set, Value::Array(object), Value::Array(config)) => {
            let new: Vec<_> = config.iter().filter(|item| !object.contains(item)).cloned().collect();
            object.extend(new);
        }
        (_, object, config) => object.clone_from(config),
    }
}

/// Takes the value at a path away.
fn remove(shape: Shape<'_>, object: &mut Value, path: &[String]) {
    let Some((step, rest)) = path.split_first() else { return };
    if let Some(name) = step.strip_prefix("f:") {
        let Some(fields) = object.as_object_mut() else { return };
        if rest.is_empty() {
            fields.remove(name);
        } else if let Some(inner) = fields.get_mut(name) {
            remove(shape.field(name).0, inner, rest);
        }
        return;
    }
    let Some(items) = object.as_array_mut() else { return };
    let at = if let Some(value) = step.strip_prefix("v:") {
        serde_json::from_str(value).ok().and_then(|value: Value| items.iter().position(|item| *item == value))
    } else {
        let known = step.strip_prefix("k:").and_then(|key| serde_json::from_str::<serde_json::Map<_, _>>(key).ok());
        known.and_then(|known| place(items, &known.keys().cloned().collect::<Vec<_>>(), &known))
    };
    let Some(at) = at else { return };
    if rest.is_empty() {
        items.remove(at);
    } else if let Some(item) = items.get_mut(at) {
        remove(shape.item(), item, rest);
    }
}

fn refuse(conflicts: &[(&Manager, &Path)]) -> Failure {
    let causes: Vec<_> =
        conflicts.iter().map(|(manager, path)| (format!("conflict with {}", shown(manager)), field(path))).collect();
    let list = match causes.as_slice() {
        [(message, field)] => format!("{message}: {field}"),
        many => {
            let mut by_manager: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for (message, field) in many {
                by_manager.entry(message).or_default().push(field);
            }
            let block = |(message, fields): (&str, Vec<&str>)| {
                let manager = message.strip_prefix("conflict with ").unwrap_or(message);
                format!("conflicts with {manager}:\n- {}", fields.join("\n- "))
            };
            by_manager.into_iter().map(block).collect::<Vec<_>>().join("\n")
        }
    };
    let plural = if causes.len() == 1 { "" } else { "s" };
    Failure::apply_conflict(format!("Apply failed with {} conflict{plural}: {list}", causes.len()), &causes)
}

fn shown(manager: &Manager) -> String {
    let mut text = format!("{:?}", manager.name);
    if !manager.subresource.is_empty() {
        text = format!("{text} with subresource {:?}", manager.subresource);
    }
    if !manager.applied {
        text = format!("{text} using {} at {}", manager.api_version, manager.time);
    }
    text
}

/// `.spec.containers[name="c"].image`.
fn field(path: &Path) -> String {
    let parts: Vec<_> = path
        .iter()
        .map(|step| {
            if let Some(name) = step.strip_prefix("f:") {
                return format!(".{name}");
            }
            if let Some(value) = step.strip_prefix("v:") {
                return format!("[={value}]");
            }
            let key: serde_json::Map<String, Value> =
                step.strip_prefix("k:").and_then(|key| serde_json::from_str(key).ok()).unwrap_or_default();
            let parts: Vec<_> = key.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", parts.join(","))
        })
        .collect();
    parts.concat()
}
