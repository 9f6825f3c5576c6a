//! What the server says when it does not do what was asked: the `Status` objects of the real one.

use serde_json::{Value, json};

/// A refusal: HTTP code and body.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// HTTP status code.
    pub(super) code: u16,
    /// The `Status` object, or a string for the few answers that are plain text.
    pub(super) body: Value,
    /// Seconds for the header `Retry-After`.
    pub(super) retry_after: Option<u32>,
}

/// One entry of `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    /// `FieldValueInvalid` and its like.
    pub(super) reason: &'static str,
    /// What is wrong, without the field.
    pub(super) message: String,
    /// Path of the field.
    pub(super) field: String,
}

impl Cause {
    /// A value that may not be.
    pub(super) fn invalid(field: impl Into<String>, what: impl AsRef<str>) -> Self {
        Self { reason: "FieldValueInvalid", message: format!("Invalid value: {}", what.as_ref()), field: field.into() }
    }

    /// A value that must be there.
    pub(super) fn required(field: impl Into<String>, what: &str) -> Self {
        let message = if what.is_empty() { "Required value".to_owned() } else { format!("Required value: {what}") };
        Self { reason: "FieldValueRequired", message, field: field.into() }
    }

    /// A value outside of an enumeration.
    pub(super) fn not_supported(field: impl Into<String>, value: &Value, supported: &[Value]) -> Self {
        let list = supported.iter().map(Value::to_string).collect::<Vec<_>>().join(", ");
        let message = format!("Unsupported value: {value}: supported values: {list}");
        Self { reason: "FieldValueNotSupported", message, field: field.into() }
    }

    /// A value that must not be there.
    pub(super) fn forbidden(field: impl Into<String>, what: &str) -> Self {
        Self { reason: "FieldValueForbidden", message: format!("Forbidden: {what}"), field: field.into() }
    }

    fn json(&self) -> Value {
        json!({"reason": self.reason, "message": self.message, "field": self.field})
    }
}

/// Group, plural and name of what was asked for. Group and name may be empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    /// API group.
    pub(super) group: &'a str,
    /// Plural, or kind where the real server says the kind.
    pub(super) kind: &'a str,
    /// Name of the object.
    pub(super) name: &'a str,
}

impl Subject<'_> {
    /// `leases.coordination.k8s.io`.
    fn qualified(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    fn details(&self) -> Value {
        let mut details = json!({});
        for (key, value) in [("name", self.name), ("group", self.group), ("kind", self.kind)] {
            if !value.is_empty() {
                details[key] = value.into();
            }
        }
        details
    }
}

impl Failure {
    /// A `Status` without details.
    pub(super) fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message.into(), "reason": reason, "code": code,
        });
        Self { code, body, retry_after: None }
    }

    fn with_details(mut self, details: Value) -> Self {
        self.body["details"] = details;
        self
    }

    /// Puts a continue token into the answer.
    pub(super) fn with_continue(mut self, token: &str) -> Self {
        self.body["metadata"]["continue"] = token.into();
        self
    }

    /// What this server does not do. Never anything else for it: a test must not pass on a guess.
    pub(super) fn unsupported(what: impl AsRef<str>) -> Self {
        Self::new(501, "NotImplemented", format!("the test API server does not do this: {}", what.as_ref()))
    }

    /// The plain text of a path that is not served.
    pub(super) fn no_such_path() -> Self {
        Self { code: 404, body: "404 page not found\n".into(), retry_after: None }
    }

    /// 400.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub(super) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403; `message` from the authorizer.
    pub(super) fn forbidden(subject: Subject<'_>, message: impl Into<String>) -> Self {
        Self::new(403, "Forbidden", message).with_details(subject.details())
    }

    /// 404 of an object.
    pub(super) fn not_found(subject: Subject<'_>) -> Self {
        let message = format!("{} {:?} not found", subject.qualified(), subject.name);
        Self::new(404, "NotFound", message).with_details(subject.details())
    }

    /// 405.
    pub(super) fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
            .with_details(json!({}))
    }

    /// 406.
    pub(super) fn not_acceptable() -> Self {
        let message = "only the following media types are accepted: application/json";
        Self::new(406, "NotAcceptable", message).with_details(json!({}))
    }

    /// 409 of a create.
    pub(super) fn exists(subject: Subject<'_>) -> Self {
        let message = format!("{} {:?} already exists", subject.qualified(), subject.name);
        Self::new(409, "AlreadyExists", message).with_details(subject.details())
    }

    /// 409 of a change.
    pub(super) fn conflict(subject: Subject<'_>, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {:?}: {why}", subject.qualified(), subject.name);
        Self::new(409, "Conflict", message).with_details(subject.details())
    }

    /// 409 of a change on an old version.
    pub(super) fn stale(subject: Subject<'_>) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(subject, why)
    }

    /// 409 of an apply; `message` names all conflicts.
    pub(super) fn apply_conflict(message: String, causes: &[(String, String)]) -> Self {
        let causes: Vec<_> = causes
            .iter()
            .map(|(message, field)| json!({"reason": "FieldManagerConflict", "message": message, "field": field}))
            .collect();
        Self::new(409, "Conflict", message).with_details(json!({"causes": causes}))
    }

    /// 410.
    pub(super) fn expired(message: &str) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 415 of a body that no verb takes.
    pub(super) fn unsupported_media() -> Self {
        Self::new(415, "UnsupportedMediaType", "415: Unsupported Media Type").with_details(json!({}))
    }

    /// 415 of a patch that this resource does not take.
    pub(super) fn unsupported_patch(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422 of an object.
    pub(super) fn invalid(subject: Subject<'_>, causes: &[Cause]) -> Self {
        let all: Vec<_> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let all = match all.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} {:?} is invalid: {all}", subject.qualified(), subject.name);
        let mut details = subject.details();
        details["causes"] = causes.iter().map(Cause::json).collect();
        Self::new(422, "Invalid", message).with_details(details)
    }

    /// 422 of a JSON patch that does not apply.
    pub(super) fn rejected() -> Self {
        Self::new(422, "Invalid", "the server rejected our request due to an error in our request")
            .with_details(json!({}))
    }

    /// 504 of a version that is not reached yet.
    pub(super) fn version_too_large(asked: u64, current: u64) -> Self {
        let details = json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        });
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let mut failure = Self::new(504, "Timeout", message).with_details(details);
        failure.retry_after = Some(1);
        failure
    }
}
