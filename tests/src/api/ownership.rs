//! Ownership of fields: sets of paths as FieldsV1 writes them, what a change touches, and the list `managedFields`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::shape::{Form, Shape, identity, place};

/// A path: its steps as FieldsV1 writes them (`f:name`, `k:{...}`, `v:...`).
pub(super) type Path = Vec<String>;

/// Paths that a manager owns.
pub(super) type Set = BTreeSet<Path>;

/// Fields that nobody owns.
const NOBODYS: [&[&str]; 12] = [
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:uid"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:managedFields"],
    &["f:metadata", "f:resourceVersion"],
    &["f:metadata", "f:deletionTimestamp"],
];

fn owned(path: &Path) -> bool {
    !path.is_empty() && !NOBODYS.iter().any(|nobodys| *nobodys == path.as_slice())
}

/// What an applied configuration names.
pub(super) fn named(shape: Shape<'_>, value: &Value) -> Set {
    let mut set = Set::new();
    name_all(shape, value, &mut Vec::new(), &mut set);
    set.retain(owned);
    set
}

fn name_all(shape: Shape<'_>, value: &Value, path: &mut Path, set: &mut Set) {
    match (shape.form(value), value) {
        (Form::Fields, Value::Object(fields)) => {
            for (name, value) in fields {
                path.push(format!("f:{name}"));
                let (shape, declared) = shape.field(name);
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if empty || !declared {
                    set.insert(path.clone());
                }
                name_all(shape, value, path, set);
                path.pop();
            }
        }
        (Form::Items(keys), Value::Array(items)) => {
            for item in items {
                path.push(format!("k:{}", Value::Object(identity(item, &keys))));
                set.insert(path.clone());
                name_all(shape.item(), item, path, set);
                path.pop();
            }
        }
        (Form::Set, Value::Array(items)) => {
            for item in items {
                path.push(format!("v:{item}"));
                set.insert(path.clone());
                path.pop();
            }
        }
        _ => {
            set.insert(path.clone());
        }
    }
}

/// What differs between two objects.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Added and changed.
    pub(super) set: Set,
    pub(super) removed: Set,
}

impl Difference {
    pub(super) fn between(shape: Shape<'_>, old: &Value, new: &Value) -> Self {
        let mut difference = Self::default();
        difference.compare(shape, Some(old), Some(new), &mut Vec::new());
        difference.set.retain(owned);
        difference.removed.retain(owned);
        difference
    }

    fn compare(&mut self, shape: Shape<'_>, old: Option<&Value>, new: Option<&Value>, path: &mut Path) {
        let (Some(example), true) = (new.filter(|new| !new.is_null()).or(old).or(new), old != new) else { return };
        let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
        let form = shape.form(example);
        if form != Form::Leaf {
            match (old, new) {
                (None, _) => _ = self.set.insert(path.clone()),
                (_, None) => _ = self.removed.insert(path.clone()),
                _ => {}
            }
        }
        match form {
            Form::Leaf => self.leaf(old, new, path),
            Form::Fields => {
                let field = |value: Option<&'_ Value>, name: &str| value.and_then(|value| value.get(name)).cloned();
                let names = |value: Option<&Value>| {
                    value
                        .and_then(Value::as_object)
                        .into_iter()
                        .flat_map(|fields| fields.keys().cloned())
                        .collect::<Vec<_>>()
                };
                let all: BTreeSet<_> = names(old).into_iter().chain(names(new)).collect();
                for name in &all {
                    path.push(format!("f:{name}"));
                    let (shape, _) = shape.field(name);
                    self.compare(shape, field(old, name).as_ref(), field(new, name).as_ref(), path);
                    path.pop();
                }
            }
            Form::Items(keys) => {
                let (old, new) = (list(old), list(new));
                let all = old.iter().filter(|item| place(&new, &keys, &identity(item, &keys)).is_none()).chain(&new);
                for item in all {
                    let known = identity(item, &keys);
                    let find = |items: &[Value]| place(items, &keys, &known).and_then(|at| items.get(at).cloned());
                    path.push(format!("k:{}", Value::Object(known.clone())));
                    self.compare(shape.item(), find(&old).as_ref(), find(&new).as_ref(), path);
                    path.pop();
                }
            }
            Form::Set => {
                let (old, new) = (list(old), list(new));
                let only = |of: &[Value], without: &[Value]| {
                    of.iter().filter(|item| !without.contains(item)).map(|item| format!("v:{item}")).collect::<Vec<_>>()
                };
                let at = |path: &Path, last: String| path.iter().cloned().chain([last]).collect::<Path>();
                self.set.extend(only(&new, &old).into_iter().map(|item| at(path, item)));
                self.removed.extend(only(&old, &new).into_iter().map(|item| at(path, item)));
            }
        }
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>, path: &Path) {
        if new.is_some() {
            self.set.insert(path.clone());
        } else if old.is_some() {
            self.removed.insert(path.clone());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }
}

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manager {
    pub(super) name: String,
    /// By apply; else by any other write.
    pub(super) applied: bool,
    pub(super) api_version: String,
    pub(super) subresource: String,
    pub(super) time: String,
    pub(super) set: Set,
}

impl Manager {
    /// The same manager at the same work.
    pub(super) fn is(&self, other: &Self) -> bool {
        (&self.name, self.applied, &self.api_version, &self.subresource)
            == (&other.name, other.applied, &other.api_version, &other.subresource)
    }

    fn read(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let mut set = Set::new();
        decode(&value["fieldsV1"], &mut Vec::new(), &mut set);
        Self {
            name: text("manager"),
            applied: value["operation"] == "Apply",
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            set,
        }
    }

    fn write(&self) -> Value {
        let mut value = json!({
            "manager": self.name, "operation": if self.applied { "Apply" } else { "Update" },
            "apiVersion": self.api_version, "time": self.time, "fieldsType": "FieldsV1", "fieldsV1": encode(&self.set),
        });
        if !self.subresource.is_empty() {
            value["subresource"] = self.subresource.clone().into();
        }
        value
    }
}

/// The managers of an object.
pub(super) fn managers(object: &Value) -> Vec<Manager> {
    object["metadata"]["managedFields"].as_array().into_iter().flatten().map(Manager::read).collect()
}

/// Writes the managers into an object, those that own nothing left out.
pub(super) fn write(object: &mut Value, mut managers: Vec<Manager>) {
    managers.retain(|manager| !manager.set.is_empty());
    let order = |manager: &Manager| {
        let Manager { name, api_version, subresource, time, applied, .. } = manager.clone();
        (!applied, time, name, api_version, subresource)
    };
    managers.sort_by_key(order);
    if managers.is_empty() {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
    } else {
        object["metadata"]["managedFields"] = managers.iter().map(Manager::write).collect();
    }
}

/// Records a write other than an apply: `who` owns what it changed, others lose that and what is gone.
pub(super) fn update(object: &mut Value, mut managers: Vec<Manager>, who: Manager, difference: &Difference) {
    if difference.is_empty() {
        return write(object, managers);
    }
    for manager in &mut managers {
        manager.set.retain(|path| !difference.removed.contains(path));
        if !manager.is(&who) {
            manager.set.retain(|path| !difference.set.contains(path));
        }
    }
    match managers.iter_mut().find(|manager| manager.is(&who)) {
        Some(manager) => {
            manager.set.extend(difference.set.iter().cloned());
            manager.time = who.time;
        }
        None => managers.push(Manager { set: difference.set.clone(), ..who }),
    }
    write(object, managers);
}

/// A set as a tree, on its way to FieldsV1.
#[derive(Default)]
struct Node<'a> {
    member: bool,
    inside: BTreeMap<&'a str, Node<'a>>,
}

impl Node<'_> {
    fn write(&self) -> Value {
        let mut fields: Map<_, _> = self.inside.iter().map(|(step, node)| ((*step).to_owned(), node.write())).collect();
        // What is owned itself and has something owned inside says so with a dot.
        if self.member && !fields.is_empty() {
            fields.insert(".".to_owned(), json!({}));
        }
        fields.into()
    }
}

fn encode(set: &Set) -> Value {
    let mut root = Node::default();
    for path in set {
        let mut at = &mut root;
        for step in path {
            at = at.inside.entry(step).or_default();
        }
        at.member = true;
    }
    root.write()
}

fn decode(value: &Value, path: &mut Path, set: &mut Set) {
    let Some(fields) = value.as_object() else { return };
    for (step, inner) in fields {
        if step == "." {
            set.insert(path.clone());
            continue;
        }
        path.push(step.clone());
        if inner.as_object().is_none_or(Map::is_empty) {
            set.insert(path.clone());
        }
        decode(inner, path, set);
        path.pop();
    }
}
