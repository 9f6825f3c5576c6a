//! `x-kubernetes-validations`: rules in CEL. What the interpreter cannot do is said, never taken for valid.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use cel::{Context, ExecutionError, Program, Value as Cel, objects::Key};
use serde_json::Value;

use super::{
    schema::{ListKind, Schema, fields},
    status::Cause,
};

/// One rule, compiled.
#[derive(Debug)]
pub(super) struct Rule {
    text: String,
    program: Program,
    message: Option<String>,
    message_program: Option<Program>,
    reason: &'static str,
    field: Option<String>,
    /// Speaks of the old object, so holds for updates only.
    transition: bool,
}

/// What a rule made of an object.
pub(super) enum Problem {
    Invalid(Cause),
    /// The interpreter cannot say.
    Unknown(String),
}

impl Rule {
    pub(super) fn parse(value: &Value) -> Result<Self, String> {
        let text = value["rule"].as_str().ok_or("a validation without a rule")?.to_owned();
        let compile = |text: &str| Program::compile(text).map_err(|error| format!("CEL rule {text:?}: {error}"));
        let reason = match value["reason"].as_str() {
            None | Some("FieldValueInvalid") => "FieldValueInvalid",
            Some("FieldValueForbidden") => "FieldValueForbidden",
            Some("FieldValueRequired") => "FieldValueRequired",
            Some("FieldValueDuplicate") => "FieldValueDuplicate",
            Some(other) => return Err(format!("CEL rule with reason {other}")),
        };
        if value["optionalOldSelf"] == true {
            return Err("CEL rule with optionalOldSelf".to_owned());
        }
        let program = compile(&text)?;
        let transition = program.references().has_variable("oldSelf");
        let message_program = value["messageExpression"].as_str().map(compile).transpose()?;
        let owned = |name: &str| value[name].as_str().map(str::to_owned);
        Ok(Self {
            text,
            program,
            message: owned("message"),
            message_program,
            reason,
            field: owned("fieldPath"),
            transition,
        })
    }

    fn check(&self, path: &str, schema: &Schema, value: &Value, old: Option<&Value>) -> Option<Problem> {
        if self.transition && old.is_none() {
            return None;
        }
        let mut context = context();
        context.add_variable_from_value("self", cel(schema, value));
        if let Some(old) = old {
            context.add_variable_from_value("oldSelf", cel(schema, old));
        }
        match self.program.execute(&context) {
            Ok(Cel::Bool(true)) => None,
            Ok(Cel::Bool(false)) => Some(self.broken(path, &context)),
            Ok(other) => Some(Problem::Unknown(format!("CEL rule {:?} gives {other:?}", self.text))),
            // As a real server: a rule that fails on a missing key or a wrong index is not held.
            Err(error @ (ExecutionError::NoSuchKey(_) | ExecutionError::IndexOutOfBounds(_))) => {
                let what = format!("rule evaluation error: {error}");
                Some(Problem::Invalid(Cause::invalid(path, what)))
            }
            Err(error) => Some(Problem::Unknown(format!("CEL rule {:?}: {error}", self.text))),
        }
    }

    fn broken(&self, path: &str, context: &Context<'_, '_>) -> Problem {
        let said = self.message_program.as_ref().and_then(|program| match program.execute(context) {
            Ok(Cel::String(text)) => Some(text.to_string()),
            _ => None,
        });
        let message = said.or_else(|| self.message.clone()).unwrap_or_else(|| format!("failed rule: {}", self.text));
        let field = format!("{path}{}", self.field.as_deref().unwrap_or_default());
        let head = match self.reason {
            "FieldValueForbidden" => "Forbidden",
            "FieldValueRequired" => "Required value",
            "FieldValueDuplicate" => "Duplicate value",
            _ => "Invalid value",
        };
        Problem::Invalid(Cause { reason: self.reason, message: format!("{head}: {message}"), field })
    }
}

fn context() -> Context<'static, 'static> {
    let mut context = Context::default();
    // Of the libraries that Kubernetes adds.
    context
        .add_function("isIP", |text: Arc<String>| text.parse::<IpAddr>().is_ok())
        .expect("a name that the standard library does not use");
    context
}

/// Applies the rules of a schema and of all inside, in the order of the object's fields.
pub(super) fn check(schema: &Schema, path: &str, value: &Value, old: Option<&Value>, found: &mut Vec<Problem>) {
    let own = schema.rules.iter().filter_map(|rule| rule.check(root(path), schema, value, old));
    found.extend(own);
    for (name, value) in fields(value) {
        if let Some(schema) = schema.field(name) {
            let inside = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            check(schema, &inside, value, old.and_then(|old| old.get(name)), found);
        }
    }
    if let (Some(schema_of_items), Some(items)) = (&schema.items, value.as_array()) {
        for (index, item) in items.iter().enumerate() {
            let old = old.and_then(|old| same_item(schema, old, item));
            check(schema_of_items, &format!("{path}[{index}]"), item, old, found);
        }
    }
}

/// The path that errors about the whole object have.
fn root(path: &str) -> &str {
    if path.is_empty() { "<nil>" } else { path }
}

/// The item of the old list that a new one is compared with: only lists that are maps know.
fn same_item<'a>(schema: &Schema, old: &'a Value, item: &Value) -> Option<&'a Value> {
    let ListKind::Map(keys) = &schema.list else { return None };
    old.as_array()?.iter().find(|old| keys.iter().all(|key| old.get(key) == item.get(key)))
}

/// A value with the types that its schema says: JSON does not tell an integer from a number.
fn cel(schema: &Schema, value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(number) => match number.as_i64() {
            Some(integer) if schema.kind.as_deref() != Some("number") => Cel::Int(integer),
            _ => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Cel::String(Arc::new(text.clone())),
        Value::Array(items) => {
            let any = Schema::default();
            let of = schema.items.as_deref().unwrap_or(&any);
            Cel::List(Arc::new(items.iter().map(|item| cel(of, item)).collect()))
        }
        Value::Object(fields) => {
            let any = Schema::default();
            let field = |(name, value): (&String, &Value)| {
                (Key::from(name.clone()), cel(schema.field(name).unwrap_or(&any), value))
            };
            Cel::from(fields.iter().map(field).collect::<HashMap<_, _>>())
        }
    }
}
