//! Validation of custom resources against their schema, with the words of the real server.

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{
    kinds::{Custom, Kind},
    rules::{self, Problem},
    schema::{Bounds, Schema, fields},
    status::{Cause, Failure, Subject},
};

const NOT_CHECKED: &str = "null: some validation rules were not checked because the object was invalid; correct the \
                           existing errors to complete validation";

/// Checks an object, or with `status` only that part of it, as its subresource does.
pub(super) fn check(
    kind: &Kind,
    custom: &Custom,
    object: &Value,
    old: Option<&Value>,
    status: bool,
) -> Result<(), Failure> {
    let mut causes = Vec::new();
    if status {
        if let (Some(schema), Some(value)) = (custom.schema.properties.get("status"), object.get("status")) {
            structural(schema, &Path { shown: "status".to_owned(), said: String::new() }, value, &mut causes);
        }
    } else {
        structural(&custom.schema, &Path::default(), object, &mut causes);
    }
    if causes.is_empty() {
        let mut problems = Vec::new();
        rules::check(&custom.schema, "", object, old, &mut problems);
        for problem in problems {
            match problem {
                Problem::Invalid(cause) => causes.push(cause),
                Problem::Unknown(what) => return Err(Failure::unsupported(what)),
            }
        }
    } else {
        causes.push(Cause::invalid("<nil>", NOT_CHECKED));
    }
    if causes.is_empty() {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Err(Failure::invalid(Subject { group: &kind.group, kind: &kind.kind, name }, &causes))
}

/// A path twice: the field of the error, and the one within the message, which begins at the part that was checked.
#[derive(Clone, Default)]
struct Path {
    shown: String,
    said: String,
}

impl Path {
    fn field(&self, name: &str) -> Self {
        let join = |path: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        Self { shown: join(&self.shown), said: join(&self.said) }
    }

    fn item(&self, index: usize) -> Self {
        Self { shown: format!("{}[{index}]", self.shown), said: format!("{}[{index}]", self.said) }
    }
}

fn structural(schema: &Schema, path: &Path, value: &Value, causes: &mut Vec<Cause>) {
    let invalid = |causes: &mut Vec<Cause>, what: String| {
        causes.push(Cause::invalid(&path.shown, format!("{value}: {} in body {what}", path.said)));
    };
    if value.is_null() && schema.nullable {
        return;
    }
    if let Some(problem) = wrong_type(schema, value) {
        let message = format!(
            "Invalid value: {:?}: {} in body must be of type {problem}: {:?}",
            name(value),
            path.said,
            name(value)
        );
        causes.push(Cause { reason: "FieldValueTypeInvalid", message, field: path.shown.clone() });
        return;
    }
    if let Some(choices) = &schema.choices
        && !choices.contains(value)
    {
        causes.push(Cause::not_supported(&path.shown, value, choices));
    }
    for what in bounds(&schema.bounds, value) {
        match what {
            Bound::Should(what) => invalid(causes, what),
            Bound::TooLong(most) => causes.push(Cause {
                reason: "FieldValueTooLong",
                message: format!("Too long: may not be more than {most} bytes"),
                field: path.shown.clone(),
            }),
            Bound::TooMany(many, most) => causes.push(Cause {
                reason: "FieldValueTooMany",
                message: format!("Too many: {many}: must have at most {most} items"),
                field: path.shown.clone(),
            }),
        }
    }
    if let (Some(pattern), Some(text)) = (&schema.pattern, value.as_str())
        && !pattern.is_match(text)
    {
        invalid(causes, format!("should match '{pattern}'"));
    }
    if schema.date_time && value.as_str().is_some_and(|text| text.parse::<Timestamp>().is_err()) {
        invalid(causes, format!("must be of type date-time: {value}"));
    }
    combined(schema, path, value, causes);
    for missing in schema.required.iter().filter(|name| value.is_object() && value.get(name).is_none()) {
        causes.push(Cause::required(path.field(missing).shown, ""));
    }
    for (name, value) in fields(value) {
        if let Some(schema) = schema.field(name) {
            structural(schema, &path.field(name), value, causes);
        }
    }
    if let (Some(schema), Some(items)) = (&schema.items, value.as_array()) {
        for (index, item) in items.iter().enumerate() {
            structural(schema, &path.item(index), item, causes);
        }
    }
}

/// allOf, anyOf, oneOf, not.
fn combined(schema: &Schema, path: &Path, value: &Value, causes: &mut Vec<Cause>) {
    let holds = |schema: &Schema| {
        let mut inner = Vec::new();
        structural(schema, path, value, &mut inner);
        inner.is_empty()
    };
    for part in &schema.all_of {
        structural(part, path, value, causes);
    }
    let mut wrong = |what: &str| {
        let said = if path.said.is_empty() { "\"\"" } else { &path.said };
        causes.push(Cause::invalid(&path.shown, format!("{value}: {said} {what}")));
    };
    if !schema.any_of.is_empty() && !schema.any_of.iter().any(holds) {
        wrong("must validate at least one schema (anyOf)");
    }
    if !schema.one_of.is_empty() && schema.one_of.iter().filter(|part| holds(part)).count() != 1 {
        wrong("must validate one and only one schema (oneOf)");
    }
    if schema.not.as_ref().is_some_and(|part| holds(part)) {
        wrong("must not validate the schema (not)");
    }
}

/// The type that it should have been.
fn wrong_type<'a>(schema: &'a Schema, value: &Value) -> Option<&'a str> {
    if schema.int_or_string {
        let fine = value.is_string() || value.is_i64() || value.is_u64();
        return (!fine).then_some("integer,string");
    }
    let kind = schema.kind.as_deref()?;
    let fine = match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => false,
    };
    (!fine).then_some(kind)
}

fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

enum Bound {
    Should(String),
    TooLong(u64),
    TooMany(usize, u64),
}

fn bounds(bounds: &Bounds, value: &Value) -> Vec<Bound> {
    let mut found = Vec::new();
    let mut should = |wrong: bool, what: String| {
        if wrong {
            found.push(Bound::Should(format!("should {what}")));
        }
    };
    if let Some(number) = value.as_f64() {
        if let Some(least) = bounds.minimum {
            let (wrong, or) =
                if bounds.exclusive_minimum { (number <= least, "") } else { (number < least, " or equal to") };
            should(
                wrong,
                if or.is_empty() { format!("be greater than {least}") } else { format!("be greater than{or} {least}") },
            );
        }
        if let Some(most) = bounds.maximum {
            let (wrong, or) =
                if bounds.exclusive_maximum { (number >= most, "") } else { (number > most, " or equal to") };
            should(wrong, format!("be less than{or} {most}"));
        }
        if let Some(step) = bounds.multiple_of {
            should((number % step).abs() > f64::EPSILON, format!("be a multiple of {step}"));
        }
    }
    if let Some(text) = value.as_str() {
        let length = text.chars().count() as u64;
        if let Some(least) = bounds.min_length {
            should(length < least, format!("be at least {least} chars long"));
        }
        found.extend(bounds.max_length.filter(|most| length > *most).map(Bound::TooLong));
    }
    if let Some(items) = value.as_array() {
        let mut should = |wrong: bool, what: String| {
            if wrong {
                found.push(Bound::Should(format!("should {what}")));
            }
        };
        if let Some(least) = bounds.min_items {
            should((items.len() as u64) < least, format!("have at least {least} items"));
        }
        let twice = items.iter().enumerate().any(|(index, item)| items.iter().take(index).any(|other| other == item));
        should(bounds.unique_items && twice, "not contain duplicates".to_owned());
        found.extend(
            bounds.max_items.filter(|most| items.len() as u64 > *most).map(|most| Bound::TooMany(items.len(), most)),
        );
    }
    if let Some(fields) = value.as_object() {
        let count = fields.len() as u64;
        if let Some(least) = bounds.min_properties.filter(|least| count < *least) {
            found.push(Bound::Should(format!("should have at least {least} properties")));
        }
        found.extend(bounds.max_properties.filter(|most| count > *most).map(|most| Bound::TooMany(fields.len(), most)));
    }
    found
}
