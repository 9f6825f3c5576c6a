//! Exchanges recorded from a real API server: reading them, sending their requests, comparing answers.
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, path::PathBuf};

use futures_util::{AsyncBufReadExt, AsyncReadExt, TryStreamExt};
use http_body_util::BodyExt;
use kube::{
    Client,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use mesh_tests::api::ApiServer;
use serde_json::{Value, json};

/// Where the recordings are.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/kubernetes-1.36")
}

/// One exchange.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) name: String,
    pub(crate) request: Value,
    pub(crate) response: Value,
}

impl Exchange {
    pub(crate) fn read(name: &str) -> Self {
        let text = std::fs::read_to_string(folder().join(format!("{name}.json"))).expect(name);
        let mut value: Value = serde_json::from_str(&text).expect(name);
        Self { name: name.to_owned(), request: value["request"].take(), response: value["response"].take() }
    }

    /// Objects of the answer: of a list, of a watch, or itself.
    pub(crate) fn objects(&self) -> Vec<Value> {
        if let Some(lines) = self.response["lines"].as_array() {
            return lines.iter().filter(|line| line["type"] != "BOOKMARK").map(|line| line["object"].clone()).collect();
        }
        let body = &self.response["body"];
        let Some(items) = body["items"].as_array() else { return vec![body.clone()] };
        let kind = body["kind"].as_str().and_then(|kind| kind.strip_suffix("List")).expect("a list");
        let typed = |item: &Value| {
            let mut item = item.clone();
            item["kind"] = kind.into();
            item["apiVersion"] = body["apiVersion"].clone();
            item
        };
        items.iter().map(typed).collect()
    }

    /// Recorded lines of a watch.
    pub(crate) fn lines(&self) -> usize {
        self.response["lines"].as_array().map_or(0, Vec::len)
    }
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) media: String,
    pub(crate) body: Value,
    /// Of a watch.
    pub(crate) lines: Vec<Value>,
}

/// A client for whoever has this token.
pub(crate) async fn client(server: &ApiServer, token: &str) -> Client {
    let config = Kubeconfig::from_yaml(&server.kubeconfig(token)).expect("a kubeconfig");
    let mut config =
        kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.expect("a config");
    config.default_retry = false;
    Client::try_from(config).expect("a client")
}

/// Texts of recordings that are other texts here: uids, tokens.
#[derive(Debug, Default)]
pub(crate) struct Names(pub(crate) BTreeMap<String, String>);

impl Names {
    fn apply(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (recorded, here)| text.replace(recorded, here))
    }

    pub(crate) fn here(&self, value: &Value) -> Value {
        serde_json::from_str(&self.apply(&value.to_string())).expect("replaced within strings")
    }
}

/// Sends the request of an exchange. `lines`: a watch is read until it has so many; none: to its end.
pub(crate) async fn send(client: &Client, exchange: &Exchange, names: &Names, lines: Option<usize>) -> Answer {
    let request = &exchange.request;
    let query: Vec<_> =
        request["query"].as_object().into_iter().flatten().map(|(name, value)| pair(name, value)).collect();
    let path = request["path"].as_str().expect("a path");
    let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
    let mut built = http::Request::builder().method(request["method"].as_str().expect("a method")).uri(uri);
    for (name, value) in request["headers"].as_object().into_iter().flatten() {
        built = built.header(name, value.as_str().expect("text"));
    }
    let body = match &request["body"] {
        Value::Null => Vec::new(),
        Value::String(text) => text.clone().into_bytes(),
        value => names.here(value).to_string().into_bytes(),
    };
    let response = client.send(built.body(Body::from(body)).expect("a request")).await.expect("an answer");
    let status = response.status().as_u16();
    let media = response.headers()["content-type"].to_str().expect("text").to_owned();
    let data = response.into_body().into_data_stream().map_err(std::io::Error::other);
    let mut reader = data.into_async_read();
    let mut answer = Answer { status, media, body: Value::Null, lines: Vec::new() };
    if exchange.response.get("lines").is_some() && status == 200 {
        let mut all = reader.lines();
        while lines.is_none_or(|lines| answer.lines.len() < lines) {
            let Some(line) = all.try_next().await.expect("a line") else { break };
            answer.lines.push(serde_json::from_str(&line).expect("a line is JSON"));
        }
    } else {
        let mut text = String::new();
        reader.read_to_string(&mut text).await.expect("a body");
        answer.body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    }
    answer
}

fn pair(name: &str, value: &Value) -> String {
    let encode = |text: &str| {
        let byte = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        };
        text.bytes().map(byte).collect::<String>()
    };
    format!("{}={}", encode(name), encode(value.as_str().expect("text")))
}

/// Compares an answer with the recording; differences are returned as text. uids, times and tokens may be others, but must
/// be there and look alike; uids are remembered in `names`.
pub(crate) fn compare(exchange: &Exchange, answer: &Answer, names: &mut Names) -> Vec<String> {
    let recorded = &exchange.response;
    let mut problems = Vec::new();
    let status = json!(answer.status);
    if recorded["status"] != status {
        problems.push(format!("status {} is {status}: {}", recorded["status"], answer.body));
        return problems;
    }
    if recorded["headers"]["content-type"] != answer.media {
        problems.push(format!("content-type {} is {}", recorded["headers"]["content-type"], answer.media));
    }
    if recorded.get("lines").is_some() {
        let lines = json!(answer.lines);
        differ(&recorded["lines"], &lines, "lines", names, &mut problems);
    } else {
        differ(&ordered(&recorded["body"]), &ordered(&answer.body), "", names, &mut problems);
    }
    problems
}

/// Several errors of one object come in the order of a Go map: any.
fn ordered(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(causes) = body.pointer_mut("/details/causes").and_then(Value::as_array_mut) {
        causes.sort_by_key(Value::to_string);
        if let Some((head, list)) = body["message"].as_str().and_then(|message| message.split_once(" is invalid: [")) {
            let mut parts: Vec<_> = list.trim_end_matches(']').split(", ").collect();
            parts.sort_unstable();
            body["message"] = format!("{head} is invalid: {}", parts.join(", ")).into();
        }
    }
    body
}

fn differ(recorded: &Value, here: &Value, path: &str, names: &mut Names, problems: &mut Vec<String>) {
    match (recorded, here) {
        (Value::Object(recorded), Value::Object(here)) => {
            let mut rest: Vec<_> = here.iter().collect();
            for (name, value) in recorded {
                let inside = format!("{path}.{name}");
                // Owned items of a list are known by their keys, a uid among them.
                let name = names.apply(name);
                rest.retain(|(own, _)| **own != name);
                match here.get(&name) {
                    Some(here) => differ(value, here, &inside, names, problems),
                    None => problems.push(format!("{inside} is missing: {value}")),
                }
            }
            problems.extend(rest.into_iter().map(|(name, value)| format!("{path}.{name} is not recorded: {value}")));
        }
        (Value::Array(recorded), Value::Array(here)) => {
            if recorded.len() != here.len() {
                problems.push(format!("{path} has {} items, recorded {}", here.len(), recorded.len()));
            }
            for (index, (recorded, here)) in recorded.iter().zip(here).enumerate() {
                differ(recorded, here, &format!("{path}[{index}]"), names, problems);
            }
        }
        (Value::String(recorded), Value::String(here)) if same_nature(path, recorded, here) => {
            if is_uid(recorded) {
                names.0.insert(recorded.clone(), here.clone());
            }
        }
        (recorded, here) => {
            if names.here(recorded) != *here {
                problems.push(format!("{path} recorded {recorded}, here {here}"));
            }
        }
    }
}

/// Texts that differ by the run, not by the server.
fn same_nature(path: &str, recorded: &str, here: &str) -> bool {
    let own = [".gitVersion", ".gitCommit", ".buildDate", ".goVersion", ".compiler", ".serverAddress", ".status.token"];
    let jti = |text: &str| text.strip_prefix("JTI=").is_some_and(is_uid);
    (is_uid(recorded) && is_uid(here))
        || (is_time(recorded) && is_time(here))
        || (jti(recorded) && jti(here))
        || own.iter().any(|own| path.ends_with(own)) && !here.is_empty()
}

fn is_uid(text: &str) -> bool {
    let lengths: Vec<_> = text.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

fn is_time(text: &str) -> bool {
    text.len() == 20 && text.ends_with('Z') && text.as_bytes().get(10) == Some(&b'T')
}
