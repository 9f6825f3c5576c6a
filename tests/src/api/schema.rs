//! Structural schemas of CustomResourceDefinitions: read from OpenAPI v3, with every keyword that is not understood
//! refused, since a keyword that is left out would accept what a real server rejects.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value};

use super::rules::Rule;

/// A schema of one value.
#[derive(Debug, Default)]
pub(super) struct Schema {
    pub(super) kind: Option<String>,
    pub(super) nullable: bool,
    pub(super) int_or_string: bool,
    pub(super) preserve: bool,
    /// A whole object of Kubernetes: its metadata and kind are not pruned.
    pub(super) embedded: bool,
    pub(super) properties: BTreeMap<String, Schema>,
    pub(super) additional: Option<Box<Schema>>,
    pub(super) items: Option<Box<Schema>>,
    pub(super) required: Vec<String>,
    pub(super) choices: Option<Vec<Value>>,
    pub(super) default: Option<Value>,
    pub(super) pattern: Option<Regex>,
    pub(super) date_time: bool,
    pub(super) bounds: Bounds,
    pub(super) list: ListKind,
    pub(super) atomic_map: bool,
    pub(super) all_of: Vec<Schema>,
    pub(super) any_of: Vec<Schema>,
    pub(super) one_of: Vec<Schema>,
    pub(super) not: Option<Box<Schema>>,
    pub(super) rules: Vec<Rule>,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum ListKind {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

/// The keywords that bound numbers and sizes.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    pub(super) minimum: Option<f64>,
    pub(super) maximum: Option<f64>,
    pub(super) exclusive_minimum: bool,
    pub(super) exclusive_maximum: bool,
    pub(super) multiple_of: Option<f64>,
    pub(super) min_length: Option<u64>,
    pub(super) max_length: Option<u64>,
    pub(super) min_items: Option<u64>,
    pub(super) max_items: Option<u64>,
    pub(super) min_properties: Option<u64>,
    pub(super) max_properties: Option<u64>,
    pub(super) unique_items: bool,
}

const IGNORED: [&str; 6] = ["description", "title", "example", "externalDocs", "$schema", "id"];

impl Schema {
    /// Reads a schema; the error says which keyword of which path is not understood.
    pub(super) fn parse(value: &Value) -> Result<Self, String> {
        Self::at("", value)
    }

    fn at(path: &str, value: &Value) -> Result<Self, String> {
        let object = value.as_object().ok_or_else(|| format!("{path}: not a schema"))?;
        let mut schema = Self::default();
        for (keyword, value) in object {
            let at = format!("{path}.{keyword}");
            schema
                .keyword(&at, keyword, value)
                .map_err(|problem| if problem.is_empty() { format!("schema keyword {at}") } else { problem })?;
        }
        if let ListKind::Map(keys) = &mut schema.list
            && let Some(list) = object.get("x-kubernetes-list-map-keys").and_then(Value::as_array)
        {
            *keys = list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        }
        Ok(schema)
    }

    fn keyword(&mut self, at: &str, keyword: &str, value: &Value) -> Result<(), String> {
        let flag = || value.as_bool().ok_or_else(String::new);
        let text = || value.as_str().map(str::to_owned).ok_or_else(String::new);
        match keyword {
            "type" => self.kind = Some(text()?),
            "nullable" => self.nullable = flag()?,
            "x-kubernetes-int-or-string" => self.int_or_string = flag()?,
            "x-kubernetes-preserve-unknown-fields" => self.preserve = flag()?,
            "x-kubernetes-embedded-resource" => self.embedded = flag()?,
            "properties" => self.properties = Self::map(at, value)?,
            "additionalProperties" => match value {
                Value::Bool(true) => self.preserve = true,
                Value::Bool(false) => {}
                schema => self.additional = Some(Box::new(Self::at(at, schema)?)),
            },
            "items" => self.items = Some(Box::new(Self::at(at, value)?)),
            "required" => self.required = words(value)?,
            "enum" => self.choices = Some(value.as_array().cloned().ok_or_else(String::new)?),
            "default" => self.default = Some(value.clone()),
            "pattern" => self.pattern = Some(Regex::new(&text()?).map_err(|error| format!("{at}: {error}"))?),
            "format" => match text()?.as_str() {
                // Widths of JSON numbers are not checked by the real server either.
                "int32" | "int64" | "float" | "double" => {}
                "date-time" => self.date_time = true,
                other => return Err(format!("schema format {other} at {at}")),
            },
            "x-kubernetes-list-type" => {
                self.list = match text()?.as_str() {
                    "atomic" => ListKind::Atomic,
                    "set" => ListKind::Set,
                    "map" => ListKind::Map(Vec::new()),
                    _ => return Err(String::new()),
                }
            }
            "x-kubernetes-list-map-keys" => {}
            "x-kubernetes-map-type" => self.atomic_map = text()? == "atomic",
            "allOf" => self.all_of = Self::list(at, value)?,
            "anyOf" => self.any_of = Self::list(at, value)?,
            "oneOf" => self.one_of = Self::list(at, value)?,
            "not" => self.not = Some(Box::new(Self::at(at, value)?)),
            "x-kubernetes-validations" => {
                let rules = value.as_array().ok_or_else(String::new)?;
                self.rules = rules.iter().map(Rule::parse).collect::<Result<_, _>>()?;
            }
            _ if IGNORED.contains(&keyword) => {}
            _ => return self.bounds.keyword(keyword, value),
        }
        Ok(())
    }

    fn map(at: &str, value: &Value) -> Result<BTreeMap<String, Self>, String> {
        let properties = value.as_object().ok_or_else(String::new)?;
        properties.iter().map(|(name, value)| Ok((name.clone(), Self::at(&format!("{at}.{name}"), value)?))).collect()
    }

    fn list(at: &str, value: &Value) -> Result<Vec<Self>, String> {
        value.as_array().ok_or_else(String::new)?.iter().map(|value| Self::at(at, value)).collect()
    }

    /// The schema of a field.
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or(self.additional.as_deref())
    }

    /// Takes out what the schema does not know. The root keeps what every object has.
    pub(super) fn prune(&self, value: &mut Value) {
        self.prune_at(value, true);
    }

    fn prune_at(&self, value: &mut Value, whole: bool) {
        match value {
            Value::Object(fields) => {
                let kept = |name: &str| (whole || self.embedded) && ["apiVersion", "kind", "metadata"].contains(&name);
                if !self.preserve {
                    fields.retain(|name, _| kept(name) || self.field(name).is_some());
                }
                for (name, value) in fields.iter_mut().filter(|(name, _)| !kept(name)) {
                    if let Some(schema) = self.field(name) {
                        schema.prune_at(value, false);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    for item in items {
                        schema.prune_at(item, false);
                    }
                }
            }
            _ => {}
        }
    }

    /// Fills defaults in, those inside of defaults too; a null where null is not allowed counts as absent.
    pub(super) fn fill(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, schema) in &self.properties {
                    let Some(default) = &schema.default else { continue };
                    if fields.get(name).is_none_or(|value| value.is_null() && !schema.nullable) {
                        fields.insert(name.clone(), default.clone());
                    }
                }
                for (name, value) in fields {
                    if let Some(schema) = self.field(name) {
                        schema.fill(value);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    for item in items {
                        schema.fill(item);
                    }
                }
            }
            _ => {}
        }
    }
}

impl Bounds {
    fn keyword(&mut self, keyword: &str, value: &Value) -> Result<(), String> {
        let number = || value.as_f64().map(Some).ok_or_else(String::new);
        let count = || value.as_u64().map(Some).ok_or_else(String::new);
        let flag = || value.as_bool().ok_or_else(String::new);
        match keyword {
            "minimum" => self.minimum = number()?,
            "maximum" => self.maximum = number()?,
            "exclusiveMinimum" => self.exclusive_minimum = flag()?,
            "exclusiveMaximum" => self.exclusive_maximum = flag()?,
            "multipleOf" => self.multiple_of = number()?,
            "minLength" => self.min_length = count()?,
            "maxLength" => self.max_length = count()?,
            "minItems" => self.min_items = count()?,
            "maxItems" => self.max_items = count()?,
            "minProperties" => self.min_properties = count()?,
            "maxProperties" => self.max_properties = count()?,
            "uniqueItems" => self.unique_items = flag()?,
            _ => return Err(String::new()),
        }
        Ok(())
    }
}

fn words(value: &Value) -> Result<Vec<String>, String> {
    let words = value.as_array().ok_or_else(String::new)?;
    words.iter().map(|word| word.as_str().map(str::to_owned).ok_or_else(String::new)).collect()
}

/// An object's fields, or none.
pub(super) fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}
