//! How values merge: which lists are maps or sets, what is replaced as a whole. Of built-in kinds a table says it (the
//! `patchMergeKey` and `listType` marks of k8s.io/api), of custom resources their schema.

use serde_json::{Map, Value};

use super::{
    kinds::Kind,
    schema::{ListKind, Schema},
};

/// The shape of one value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape<'a> {
    /// Within a built-in kind; the name of the field.
    BuiltIn { kind: &'a Kind, field: &'a str },
    /// Of a custom resource. None: not in the schema.
    Custom { schema: Option<&'a Schema>, root: bool },
    /// metadata, of any kind.
    Metadata { field: &'a str },
}

/// What to do with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Scalars, and what is owned and replaced as a whole.
    Leaf,
    /// Field by field.
    Fields,
    /// A list whose items are known by these fields.
    Items(Vec<String>),
    /// A list of scalars without order.
    Set,
}

/// Lists of built-in kinds that are maps, by field.
const KEYS: &[(&str, &[&str])] = &[
    ("conditions", &["type"]),
    ("containers", &["name"]),
    ("env", &["name"]),
    ("ephemeralContainers", &["name"]),
    ("hostAliases", &["ip"]),
    ("imagePullSecrets", &["name"]),
    ("initContainers", &["name"]),
    ("ownerReferences", &["uid"]),
    ("podIPs", &["ip"]),
    ("resourceClaims", &["name"]),
    ("schedulingGates", &["name"]),
    ("secrets", &["name"]),
    ("topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    ("volumeDevices", &["devicePath"]),
    ("volumeMounts", &["mountPath"]),
    ("volumes", &["name"]),
];

/// Maps of built-in kinds that are owned as a whole, by field.
const ATOMIC: &[&str] = &[
    "annotationSelector",
    "configMapKeyRef",
    "fieldRef",
    "involvedObject",
    "labelSelector",
    "matchLabels",
    "nodeSelector",
    "regarding",
    "related",
    "resourceFieldRef",
    "roleRef",
    "secretKeyRef",
    "secretRef",
    "selector",
];

impl<'a> Shape<'a> {
    /// Of a whole object.
    pub(super) fn of(kind: &'a Kind) -> Self {
        match &kind.custom {
            Some(custom) => Self::Custom { schema: Some(&custom.schema), root: true },
            None => Self::BuiltIn { kind, field: "" },
        }
    }

    /// Of a field; and whether the type declares it, so that it is no key of a map.
    pub(super) fn field(self, name: &'a str) -> (Self, bool) {
        match self {
            Self::BuiltIn { field: "", .. } | Self::Custom { root: true, .. } if name == "metadata" => {
                (Self::Metadata { field: "" }, true)
            }
            Self::BuiltIn { kind, .. } => (Self::BuiltIn { kind, field: name }, true),
            Self::Metadata { field } => (Self::Metadata { field: name }, !matches!(field, "annotations" | "labels")),
            Self::Custom { schema, root } => {
                let declared = root || schema.is_some_and(|schema| schema.properties.contains_key(name));
                (Self::Custom { schema: schema.and_then(|schema| schema.field(name)), root: false }, declared)
            }
        }
    }

    /// Of an item of a list.
    pub(super) fn item(self) -> Self {
        match self {
            Self::BuiltIn { kind, .. } => Self::BuiltIn { kind, field: "[]" },
            Self::Metadata { .. } => Self::Metadata { field: "[]" },
            Self::Custom { schema, .. } => {
                Self::Custom { schema: schema.and_then(|schema| schema.items.as_deref()), root: false }
            }
        }
    }

    /// How `value`, that has this shape, merges.
    pub(super) fn form(self, value: &Value) -> Form {
        match value {
            Value::Object(_) => self.of_object(),
            Value::Array(items) => {
                let form = self.of_list();
                // A list that does not have what its items are known by can only be taken as a whole.
                let known = match &form {
                    Form::Items(keys) => items.iter().all(|item| keys.iter().any(|key| item.get(key).is_some())),
                    _ => true,
                };
                if known { form } else { Form::Leaf }
            }
            _ => Form::Leaf,
        }
    }

    fn of_object(self) -> Form {
        let atomic = match self {
            Self::BuiltIn { field, .. } => ATOMIC.contains(&field),
            Self::Custom { schema, .. } => schema.is_some_and(|schema| schema.atomic_map),
            // Owner references.
            Self::Metadata { field } => field == "[]",
        };
        if atomic { Form::Leaf } else { Form::Fields }
    }

    fn of_list(self) -> Form {
        let keys = |keys: &[&str]| Form::Items(keys.iter().map(|&key| key.to_owned()).collect());
        let table =
            |field: &str| KEYS.iter().find(|(name, _)| *name == field).map_or(Form::Leaf, |(_, list)| keys(list));
        match self {
            Self::Metadata { field: "finalizers" } => Form::Set,
            Self::BuiltIn { kind, field: "ports" } => match kind.kind.as_str() {
                "Service" => keys(&["port", "protocol"]),
                "EndpointSlice" => Form::Leaf,
                _ => keys(&["containerPort", "protocol"]),
            },
            Self::BuiltIn { kind, field: "addresses" } if kind.kind == "Node" => keys(&["type"]),
            Self::BuiltIn { kind, field: "finalizers" | "podCIDRs" }
                if matches!(kind.kind.as_str(), "Namespace" | "Node") =>
            {
                Form::Set
            }
            Self::BuiltIn { field, .. } | Self::Metadata { field } => table(field),
            Self::Custom { schema, .. } => match schema.map(|schema| &schema.list) {
                Some(ListKind::Map(list)) => Form::Items(list.clone()),
                Some(ListKind::Set) => Form::Set,
                _ => Form::Leaf,
            },
        }
    }
}

/// The fields by which an item is known, with their values.
pub(super) fn identity(item: &Value, keys: &[String]) -> Map<String, Value> {
    keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone()))).collect()
}

/// The place of the item with this identity.
pub(super) fn place(items: &[Value], keys: &[String], wanted: &Map<String, Value>) -> Option<usize> {
    items.iter().position(|item| identity(item, keys) == *wanted)
}
