//! Objects that are only created, answered and forgotten: reviews of tokens and of access, and requests for tokens.

use serde_json::{Value, json};

use super::{
    State,
    kinds::Kind,
    ownership::{self, Difference, Manager, Set},
    rbac::{Action, Cached, User, Verdict},
    shape::Shape,
    status::{Cause, Failure, Subject},
    store::Key,
    time,
    token::{self, ISSUER},
};

const AUTHENTICATION: &str = "authentication.k8s.io";

/// Answers a review.
pub(super) fn answer(
    state: &mut State,
    kind: &Kind,
    user: &User,
    mut object: Value,
    manager: &str,
) -> Result<Value, Failure> {
    if kind.kind == "SelfSubjectReview" {
        return Ok(json!({
            "kind": kind.kind, "apiVersion": kind.api_version(), "metadata": {"creationTimestamp": time::now()},
            "status": {"userInfo": user.info()},
        }));
    }
    manage(kind, &kind.zero(), &mut object, manager, "");
    let spec = object["spec"].clone();
    object["status"] = match kind.kind.as_str() {
        "TokenReview" => token_review(state, &spec)?,
        "SelfSubjectAccessReview" => access(state, user, &spec)?,
        _ => {
            let subject = User {
                name: spec["user"].as_str().unwrap_or_default().to_owned(),
                groups: strings(&spec["groups"]),
                ..User::default()
            };
            access(state, &subject, &spec)?
        }
    };
    Ok(object)
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn manage(kind: &Kind, zero: &Value, object: &mut Value, manager: &str, subresource: &str) {
    if object["metadata"].is_null() {
        object["metadata"] = json!({});
    }
    let who = Manager {
        name: manager.to_owned(),
        applied: false,
        api_version: kind.api_version(),
        subresource: subresource.to_owned(),
        time: time::now(),
        set: Set::new(),
    };
    let difference = Difference::between(Shape::of(kind), zero, &without_status(object));
    ownership::update(object, Vec::new(), who, &difference);
}

fn without_status(object: &Value) -> Value {
    let mut object = object.clone();
    object["status"] = json!({});
    object
}

fn token_review(state: &mut State, spec: &Value) -> Result<Value, Failure> {
    let given = spec["token"].as_str().unwrap_or_default();
    if given.is_empty() {
        return Err(Failure::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences = strings(&spec["audiences"]);
    let target = if audiences.is_empty() { vec![ISSUER.to_owned()] } else { audiences };
    Ok(match token::verify(state, given, &target) {
        Ok(verified) => {
            json!({"authenticated": true, "user": verified.user.info(), "audiences": verified.audiences})
        }
        Err(error) => json!({"user": {}, "error": error}),
    })
}

fn access(state: &mut State, user: &User, spec: &Value) -> Result<Value, Failure> {
    let text = |value: &'_ Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_null() == path.is_null() {
        return Err(Failure::unsupported("an access review without exactly one kind of attributes"));
    }
    let of = if resource.is_null() { path } else { resource };
    let fields = ["verb", "group", "resource", "subresource", "namespace", "name", "path"].map(|name| text(of, name));
    let [verb, group, resource, subresource, namespace, name, path] = &fields;
    let action = Action { verb, group, resource, subresource, namespace, name, path };
    Ok(match Cached::get(state).authorize(user, &action) {
        Verdict::Allowed(reason) if reason.is_empty() => json!({"allowed": true}),
        Verdict::Allowed(reason) => json!({"allowed": true, "reason": reason}),
        Verdict::Denied => json!({"allowed": false}),
    })
}

/// POST to `serviceaccounts/NAME/token`.
pub(super) fn token_request(
    state: &mut State,
    namespace: &str,
    name: &str,
    mut object: Value,
    manager: &str,
) -> Result<Value, Failure> {
    let kind = Kind::token_request();
    let entry = state.store.get("serviceaccounts.", &Key::new(namespace, name));
    let missing = Subject { group: "", kind: "serviceaccounts", name };
    let account = entry.ok_or_else(|| Failure::not_found(missing))?.value();
    let seconds = object["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
    if seconds < 600 {
        let what = format!("{seconds}: may not specify a duration less than 10 minutes");
        let subject = Subject { group: AUTHENTICATION, kind: "TokenRequest", name: "" };
        return Err(Failure::invalid(subject, &[Cause::invalid("spec.expirationSeconds", what)]));
    }
    let pod = bound_pod(state, namespace, name, &object["spec"]["boundObjectRef"])?;
    let zero = json!({"spec": {"audiences": null, "expirationSeconds": null, "boundObjectRef": null}, "status": {}});
    manage(&kind, &zero, &mut object, manager, "token");
    let mut audiences = strings(&object["spec"]["audiences"]);
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    let claims = token::claims(state, &account, pod.as_ref(), &audiences, seconds);
    object["spec"]["audiences"] = json!(audiences);
    object["spec"]["expirationSeconds"] = seconds.into();
    if pod.is_none() {
        object["spec"]["boundObjectRef"] = Value::Null;
    }
    object["metadata"]["name"] = name.into();
    object["metadata"]["namespace"] = namespace.into();
    object["metadata"]["uid"] = account["metadata"]["uid"].clone();
    object["metadata"]["creationTimestamp"] = time::now().into();
    let until = time::at(claims["exp"].as_i64().unwrap_or_default());
    object["status"] = json!({"token": state.signer.sign(&claims), "expirationTimestamp": until});
    Ok(object)
}

fn bound_pod(state: &State, namespace: &str, account: &str, bound: &Value) -> Result<Option<Value>, Failure> {
    if bound.is_null() {
        return Ok(None);
    }
    if bound["kind"] != "Pod" || bound["apiVersion"] != "v1" {
        return Err(Failure::unsupported(format!("a token bound to a {}", bound["kind"])));
    }
    let name = bound["name"].as_str().unwrap_or_default();
    let entry = state.store.get("pods.", &Key::new(namespace, name));
    let pod = entry.ok_or_else(|| Failure::not_found(Subject { group: "", kind: "pods", name }))?.value();
    let uid = bound["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() && pod["metadata"]["uid"] != uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been \
             deleted and then recreated"
        );
        return Err(Failure::conflict(Subject { group: "", kind: "Pod", name }, &why));
    }
    if pod["spec"]["serviceAccountName"] != account {
        let message = format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
        );
        return Err(Failure::bad_request(message));
    }
    Ok(Some(pod))
}
