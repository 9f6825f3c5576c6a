//! One request from its head to its answer: fault, who, may they, what.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{
    HeaderMap, Method, Request, Response,
    body::Incoming,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT},
    upgrade::OnUpgrade,
};
use serde_json::{Value, json};

use super::{
    Shared, State,
    body::{self, Body},
    discovery,
    fault::Effect,
    form::{self, Form},
    forward,
    kinds::Kind,
    list, patch,
    rbac::{Action, Cached, Decided, User, Verdict, refusal},
    request::{Query, Target, Verb},
    review,
    selector::Selector,
    status::{Failure, Subject},
    store::Key,
    token::{self, ISSUER},
    watch::Watch,
    write::{Done, Patch, Write},
};

/// As in the real server.
const LARGEST_BODY: usize = 3 * 1024 * 1024;
const PATCHES: [&str; 4] = [patch::JSON, patch::MERGE, patch::STRATEGIC, patch::APPLY];

/// Answers one request, faults included. An error breaks the connection.
pub(super) async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Broken> {
    let mut request = request;
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, incoming) = request.into_parts();
    let query = Query::parse(head.uri.query());
    let path = head.uri.path().to_owned();
    let verb = Target::parse(&path).and_then(|target| Verb::of(&head.method, &target, &query).ok());
    let name = verb.map_or_else(|| head.method.as_str().to_lowercase(), |verb| verb.name().to_owned());
    shared.requests.record(&name, &path, head.uri.query().unwrap_or_default());
    let effect = shared.faults.strike(&name, &path);
    let mut pace = None;
    match effect {
        None => {}
        Some(Effect::Delay(time)) => tokio::time::sleep(time).await,
        Some(Effect::Break) => return Err(Broken),
        Some(Effect::Silence) => std::future::pending().await,
        Some(Effect::Slow(slow)) => pace = Some(slow),
        Some(Effect::Refuse { code, retry_after }) => return Ok(refuse(&fault(code, retry_after))),
    }
    let asked = Asked { method: head.method, path, query, headers: head.headers, upgrade: Mutex::new(Some(upgrade)) };
    let response = match read(incoming).await {
        Ok(bytes) => asked.answer(&shared, bytes).await.unwrap_or_else(|failure| refuse(&failure)),
        Err(failure) => refuse(&failure),
    };
    super::settle(&shared);
    Ok(match pace {
        Some(pace) => response.map(|inner| body::paced(inner, pace)),
        None => response,
    })
}

/// The connection is to be broken.
#[derive(Debug)]
pub(super) struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("broken by a fault")
    }
}

impl std::error::Error for Broken {}

async fn read(incoming: Incoming) -> Result<Bytes, Failure> {
    let collected = Limited::new(incoming, LARGEST_BODY).collect().await;
    let too_large = |_| Failure::new(413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728");
    Ok(collected.map_err(too_large)?.to_bytes())
}

fn fault(code: u16, retry_after: Option<u32>) -> Failure {
    let (reason, message) = match code {
        429 => ("TooManyRequests", "Too many requests, please try again later."),
        500 => ("InternalError", "Internal error occurred: by order of the test"),
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
        504 => ("Timeout", "Timeout: request did not complete within the allotted timeout"),
        _ => ("", "by order of the test"),
    };
    Failure { retry_after, ..Failure::new(code, reason, message) }
}

/// Makes the answer of a refusal.
fn refuse(failure: &Failure) -> Response<Body> {
    let mut response = match &failure.body {
        Value::String(text) => plain(failure.code, text.clone()),
        status => json_answer(failure.code, status),
    };
    if let Some(seconds) = failure.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn plain(code: u16, text: String) -> Response<Body> {
    answer(code, "text/plain; charset=utf-8", body::whole(text))
}

fn json_answer(code: u16, value: &Value) -> Response<Body> {
    answer(code, "application/json", body::whole(format!("{value}\n")))
}

fn answer(code: u16, media: &str, body: Body) -> Response<Body> {
    let built =
        Response::builder().status(code).header(CONTENT_TYPE, media).header("cache-control", "no-cache, private");
    built.body(body).expect("constant headers")
}

struct Asked {
    method: Method,
    path: String,
    query: Query,
    headers: HeaderMap,
    upgrade: Mutex<Option<OnUpgrade>>,
}

impl Asked {
    fn header(&self, name: &hyper::header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn agent(&self) -> &str {
        self.header(&USER_AGENT).unwrap_or_default()
    }

    async fn answer(&self, shared: &Arc<Shared>, bytes: Bytes) -> Result<Response<Body>, Failure> {
        let user = self.user(&mut shared.state())?;
        let Some(target) = Target::parse(&self.path) else { return self.other(shared, &user) };
        let verb = Verb::of(&self.method, &target, &self.query)?;
        let kind = shared.state().find(&target.group, &target.version, &target.plural);
        self.authorize(&mut shared.state(), &user, &target, verb, kind.as_deref())?;
        let kind = kind.ok_or_else(|| not_served(&target))?;
        if kind.namespaced && target.namespace.is_none() && !matches!(verb, Verb::List | Verb::Watch) {
            return Err(Failure::method_not_allowed());
        }
        self.resource(shared, &user, &kind, &target, verb, bytes).await
    }

    /// Who asks. No credentials: nobody; wrong ones: 401.
    fn user(&self, state: &mut State) -> Result<User, Failure> {
        let Some(header) = self.header(&AUTHORIZATION) else { return Ok(User::anonymous()) };
        let token = header.strip_prefix("Bearer ").ok_or_else(Failure::unauthorized)?.trim();
        if let Some(user) = state.users.get(token) {
            return Ok(user.clone());
        }
        let verified = token::verify(state, token, &[ISSUER.to_owned()]);
        verified.map(|verified| verified.user).map_err(|_| Failure::unauthorized())
    }

    fn authorize(
        &self,
        state: &mut State,
        user: &User,
        target: &Target,
        verb: Verb,
        kind: Option<&Kind>,
    ) -> Result<(), Failure> {
        let selected = kind.and_then(|kind| Selector::parse(kind, &self.query).ok());
        let selected = selected.as_ref().and_then(Selector::name).filter(|_| matches!(verb, Verb::List | Verb::Watch));
        let name = target.name.as_deref().or(selected).unwrap_or_default();
        let action = Action {
            verb: verb.name(),
            group: &target.group,
            resource: &target.plural,
            subresource: target.subresource.as_deref().unwrap_or_default(),
            namespace: target.namespace.as_deref().unwrap_or_default(),
            name,
            path: "",
        };
        let is_allowed = Cached::get(state).authorize(user, &action) != Verdict::Denied;
        state.decided.insert(Decided::of(user, &action, is_allowed));
        if is_allowed {
            return Ok(());
        }
        let named = target.name.as_deref().unwrap_or_default();
        let subject = Subject { group: &target.group, kind: &target.plural, name: named };
        let dotted =
            if target.group.is_empty() { target.plural.clone() } else { format!("{}.{}", target.plural, target.group) };
        let what = if named.is_empty() { dotted } else { format!("{dotted} {named:?}") };
        Err(Failure::forbidden(subject, format!("{what} is forbidden: {}", refusal(user, &action))))
    }

    /// Discovery, version, health.
    fn other(&self, shared: &Shared, user: &User) -> Result<Response<Body>, Failure> {
        let mut state = shared.state();
        let verb = self.method.as_str().to_lowercase();
        let action = Action { verb: &verb, path: &self.path, ..Action::default() };
        if Cached::get(&mut state).authorize(user, &action) == Verdict::Denied {
            let subject = Subject { group: "", kind: "", name: "" };
            return Err(Failure::forbidden(subject, format!("forbidden: {}", refusal(user, &action))));
        }
        let kinds = state.kinds();
        let segments: Vec<_> = self.path.trim_matches('/').split('/').collect();
        let document = match segments.as_slice() {
            ["healthz" | "livez" | "readyz"] => return Ok(plain(200, "ok".to_owned())),
            ["version"] => Some(version()),
            [root @ ("api" | "apis")] if discovery::wants_aggregated(self.header(&ACCEPT)) => {
                let document = discovery::aggregated(&kinds, *root == "api");
                return Ok(answer(200, discovery::AGGREGATED, body::whole(document.to_string())));
            }
            ["api"] => Some(discovery::core(&shared.address().to_string())),
            ["apis"] => Some(discovery::groups(&kinds)),
            ["api", version] => discovery::resources(&kinds, "", version),
            ["apis", group] => discovery::group(&kinds, group),
            ["apis", group, version] => discovery::resources(&kinds, group, version),
            _ => None,
        };
        document.map(|document| json_answer(200, &document)).ok_or_else(Failure::no_such_path)
    }

    async fn resource(
        &self,
        shared: &Arc<Shared>,
        user: &User,
        kind: &Arc<Kind>,
        target: &Target,
        verb: Verb,
        bytes: Bytes,
    ) -> Result<Response<Body>, Failure> {
        let status = match target.subresource.as_deref() {
            None => false,
            Some("status") if kind.status => true,
            Some("token") if kind.is("ServiceAccount") && verb == Verb::Create => {
                return self.token(shared, target, &bytes);
            }
            Some("portforward") if kind.is("Pod") => return self.forward(shared, user, kind, target),
            Some(other) if kind.custom.is_none() => {
                return Err(Failure::unsupported(format!("{}/{other}", kind.plural)));
            }
            Some(_) => return Err(Failure::no_such_path()),
        };
        let form = Form::accepted(self.header(&ACCEPT))?;
        let namespace = target.namespace.as_deref();
        match verb {
            Verb::Get => self.get(shared, kind, target, form).await,
            Verb::List => {
                let parts = list::list(shared, kind, target, &self.query, form).await?;
                Ok(answer(200, "application/json", body::pieces(parts)))
            }
            Verb::Watch => self.watch(shared, kind, target, form).await,
            Verb::Create if target.name.is_some() => Err(Failure::method_not_allowed()),
            Verb::Create if kind.review => {
                let object = self.json(kind, &bytes)?;
                let object = review::answer(&mut shared.state(), kind, user, object, self.manager())?;
                Ok(json_answer(201, &object))
            }
            Verb::DeleteCollection => self.delete_collection(shared, kind, target, &bytes),
            _ => {
                let name = target.name.as_deref();
                let write =
                    Write { kind: Arc::clone(kind), namespace, name, status, query: &self.query, agent: self.agent() };
                let done = self.write(&write, &mut shared.state(), verb, &bytes)?;
                Ok(json_answer(done.code, &done.object))
            }
        }
    }

    /// Since 1.35 a WebSocket takes the right to create, as a POST would.
    fn forward(
        &self,
        shared: &Arc<Shared>,
        user: &User,
        kind: &Arc<Kind>,
        target: &Target,
    ) -> Result<Response<Body>, Failure> {
        self.authorize(&mut shared.state(), user, target, Verb::Create, Some(kind))?;
        let (namespace, pod) =
            (target.namespace.as_deref().unwrap_or_default(), target.name.as_deref().unwrap_or_default());
        if shared.state().store.get(&kind.collection, &Key::new(namespace, pod)).is_none() {
            let subject = Subject { group: "", kind: "pods", name: pod };
            return Err(Failure::not_found(subject));
        }
        let port = self.query.get("ports").and_then(|port| port.parse().ok());
        let wish = forward::Wish { namespace, pod, port, headers: &self.headers };
        let upgrade = self.upgrade.lock().expect("nobody panics with it").take();
        let upgrade = upgrade.ok_or_else(|| Failure::unsupported("a second answer"))?;
        forward::answer(&shared.forwards, &wish, upgrade)
    }

    fn manager(&self) -> &str {
        let prefix = self.agent().split('/').next().unwrap_or_default();
        self.query.get("fieldManager").unwrap_or(if prefix.is_empty() { "unknown" } else { prefix })
    }

    fn write(&self, write: &Write<'_>, state: &mut State, verb: Verb, bytes: &Bytes) -> Result<Done, Failure> {
        match verb {
            Verb::Create => write.create(state, self.json(&write.kind, bytes)?),
            Verb::Update => write.replace(state, self.json(&write.kind, bytes)?),
            Verb::Patch => write.patch(state, &Patch { media: self.patch_media(&write.kind)?, body: bytes }),
            _ => write.delete(state, &options(bytes)?),
        }
    }

    fn media(&self) -> &str {
        self.header(&CONTENT_TYPE).unwrap_or("application/json").split(';').next().unwrap_or_default().trim()
    }

    fn patch_media(&self, kind: &Kind) -> Result<&'static str, Failure> {
        let media = PATCHES.into_iter().find(|media| *media == self.media());
        match (media, kind.custom.is_some()) {
            (Some(patch::STRATEGIC) | None, true) => {
                Err(Failure::unsupported_patch(&[patch::JSON, patch::MERGE, patch::APPLY]))
            }
            (Some(media), _) => Ok(media),
            (None, false) => Err(Failure::unsupported_media()),
        }
    }

    /// The object in a body.
    fn json(&self, kind: &Kind, bytes: &Bytes) -> Result<Value, Failure> {
        match self.media() {
            "application/json" => serde_json::from_slice(bytes).map_err(|error| {
                let why = if error.is_eof() { "unexpected end of JSON input".to_owned() } else { error.to_string() };
                let text = String::from_utf8_lossy(bytes);
                Failure::bad_request(format!(
                    "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse \
                     error: {why} ({text})",
                    kind.kind
                ))
            }),
            "application/yaml" => super::yaml(bytes),
            other => Err(Failure::unsupported(format!("a body of type {other}"))),
        }
    }

    async fn get(&self, shared: &Shared, kind: &Kind, target: &Target, form: Form) -> Result<Response<Body>, Failure> {
        if let Some(version) = self.query.number("resourceVersion")? {
            list::wait_for(shared, version).await?;
        }
        let name = target.name.as_deref().unwrap_or_default();
        let namespace = target.namespace.as_deref().filter(|_| kind.namespaced).unwrap_or_default();
        let state = shared.state();
        let entry = state.store.get(&kind.collection, &Key::new(namespace, name));
        let entry =
            entry.ok_or_else(|| Failure::not_found(Subject { group: &kind.group, kind: &kind.plural, name }))?;
        let mut parts = form::object(kind, entry, form);
        parts.push(Bytes::from_static(b"\n"));
        Ok(answer(200, "application/json", body::pieces(parts)))
    }

    async fn watch(
        &self,
        shared: &Arc<Shared>,
        kind: &Arc<Kind>,
        target: &Target,
        form: Form,
    ) -> Result<Response<Body>, Failure> {
        let watch = Watch::parse(shared, Arc::clone(kind), target, &self.query, form)?;
        if let Some(version) = watch.not_older_than(&self.query)? {
            list::wait_for(shared, version).await?;
        }
        let (feed, body) = body::fed();
        tokio::spawn(watch.run(Arc::clone(shared), feed));
        Ok(answer(200, "application/json", body))
    }

    fn token(&self, shared: &Shared, target: &Target, bytes: &Bytes) -> Result<Response<Body>, Failure> {
        let object = self.json(&Kind::token_request(), bytes)?;
        let namespace = target.namespace.as_deref().unwrap_or_default();
        let name = target.name.as_deref().unwrap_or_default();
        let object = review::token_request(&mut shared.state(), namespace, name, object, self.manager())?;
        Ok(json_answer(201, &object))
    }

    fn delete_collection(
        &self,
        shared: &Shared,
        kind: &Arc<Kind>,
        target: &Target,
        bytes: &Bytes,
    ) -> Result<Response<Body>, Failure> {
        if kind.is("Namespace") {
            return Err(Failure::method_not_allowed());
        }
        let selector = Selector::parse(kind, &self.query)?;
        let options = options(bytes)?;
        let mut state = shared.state();
        let entries = state.store.objects(&kind.collection, target.namespace.as_deref(), None);
        let chosen: Vec<_> =
            entries.filter(|(_, entry)| selector.matches(entry)).map(|(_, entry)| Arc::clone(entry)).collect();
        let mut items = Vec::new();
        for entry in chosen {
            let write = Write {
                kind: Arc::clone(kind),
                namespace: Some(&entry.key.namespace).filter(|_| kind.namespaced).map(String::as_str),
                name: Some(&entry.key.name),
                status: false,
                query: &self.query,
                agent: self.agent(),
            };
            write.delete(&mut state, &options)?;
            items.push(form::value(kind, &entry));
        }
        let metadata = json!({"resourceVersion": state.store.version().to_string()});
        let list = json!({"kind": kind.list, "apiVersion": kind.api_version(), "metadata": metadata, "items": items});
        Ok(json_answer(200, &list))
    }
}

/// Groups that every real server has.
const GROUPS: [&str; 14] = [
    "",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "apps",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "scheduling.k8s.io",
    "storage.k8s.io",
];

/// A path that no server has is 404; one that a real server has, and this one not, must not look like it.
fn not_served(target: &Target) -> Failure {
    if GROUPS.contains(&target.group.as_str()) {
        return Failure::unsupported(format!("{} of group {:?}", target.plural, target.group));
    }
    Failure::no_such_path()
}

fn options(bytes: &Bytes) -> Result<Value, Failure> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes).map_err(|error| Failure::bad_request(error.to_string()))
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35", "gitVersion": "v1.36.2+mesh-test-api",
        "gitCommit": "0000000000000000000000000000000000000000", "gitTreeState": "clean",
        "buildDate": "2026-08-21T00:00:00Z", "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
    })
}
