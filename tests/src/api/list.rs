//! Lists: of now, of a version, in pages.

use std::{sync::Arc, time::Duration};

use base64::{
    Engine,
    alphabet::URL_SAFE,
    engine::{GeneralPurpose, general_purpose::NO_PAD},
};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    Shared,
    entry::Entry,
    form::{self, Form},
    kinds::Kind,
    request::{Query, Target},
    selector::Selector,
    status::{Cause, Failure, Subject},
    store::{Key, Store, TooOld},
};

/// How long a version that is not there yet is waited for.
const FRESH: Duration = Duration::from_secs(3);

/// Bits that are left over are none of its business, as in Go.
const BASE64: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));

/// Which state of the collection is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Now,
    /// Now, and limit is ignored.
    Any,
    At(u64),
}

/// Where a page begins: objects from `start` on, as of `version`; none is now.
struct Continue {
    version: Option<u64>,
    start: Key,
}

/// The parts of the answer to a list.
pub(super) async fn list(
    shared: &Shared,
    kind: &Kind,
    target: &Target,
    query: &Query,
    form: Form,
) -> Result<Vec<Bytes>, Failure> {
    let selector = Selector::parse(kind, query)?;
    let limit = query.number("limit")?.filter(|limit| *limit > 0);
    let page = query.get("continue").map(|token| Continue::parse(token, target.namespace.is_some())).transpose()?;
    let asked = state(query, limit.is_some(), page.as_ref())?;
    if let Some(version) = query.number("resourceVersion")?.filter(|_| page.is_none()) {
        wait_for(shared, version).await?;
    }
    let state = shared.state();
    let store = &state.store;
    let (entries, version) = read(store, kind, target, page.as_ref(), asked)?;
    let limit = if asked == State::Any { None } else { limit };
    let mut chosen: Vec<_> = entries.into_iter().filter(|entry| selector.matches(entry)).collect();
    let more = limit.and_then(|limit| chosen.len().checked_sub(limit as usize)).filter(|more| *more > 0);
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if kind.custom.is_some() {
        metadata["continue"] = "".into();
    }
    if let Some(more) = more {
        chosen.truncate(chosen.len() - more);
        let last = chosen.last().map(|entry| entry.key.clone()).unwrap_or_default();
        metadata["continue"] = Continue::token(Some(version), &last, target.namespace.is_some()).into();
        if selector.is_empty() {
            metadata["remainingItemCount"] = more.into();
        }
    }
    Ok(parts(kind, &metadata, &chosen, form))
}

fn parts(kind: &Kind, metadata: &Value, entries: &[Arc<Entry>], form: Form) -> Vec<Bytes> {
    let (list, api_version) = match form {
        Form::Whole => (kind.list.as_str(), kind.api_version()),
        Form::Metadata => ("PartialObjectMetadataList", "meta.k8s.io/v1".to_owned()),
    };
    let head = format!(r#"{{"kind":{list:?},"apiVersion":{api_version:?},"metadata":{metadata},"items":["#);
    let mut parts = Vec::with_capacity(2 + entries.len() * 3);
    parts.push(Bytes::from(head));
    for (index, entry) in entries.iter().enumerate() {
        if index > 0 {
            parts.push(Bytes::from_static(b","));
        }
        parts.extend(form::item(kind, entry, form));
    }
    parts.push(Bytes::from_static(b"]}\n"));
    parts
}

fn read(
    store: &Store,
    kind: &Kind,
    target: &Target,
    page: Option<&Continue>,
    asked: State,
) -> Result<(Vec<Arc<Entry>>, u64), Failure> {
    let namespace = target.namespace.as_deref();
    let start = page.map(|page| Key {
        namespace: namespace.map_or_else(|| page.start.namespace.clone(), str::to_owned),
        name: page.start.name.clone(),
    });
    let start = start.as_ref();
    let version = match (page, asked) {
        (Some(page), _) => page.version,
        (None, State::At(version)) => Some(version),
        (None, _) => None,
    };
    let Some(version) = version else {
        let entries = store.objects(&kind.collection, namespace, start).map(|(_, entry)| Arc::clone(entry));
        return Ok((entries.collect(), store.version()));
    };
    match store.objects_at(&kind.collection, namespace, start, version) {
        Ok(entries) => Ok((entries, version)),
        Err(TooOld(_)) => Err(match page {
            None => Failure::expired("The resourceVersion for the provided list is too old."),
            Some(page) => too_old(page, namespace.is_some()),
        }),
    }
}

/// The continuation is gone; the answer carries one that goes on with what is there now.
fn too_old(page: &Continue, namespaced: bool) -> Failure {
    let message = "The provided continue parameter is too old to display a consistent list result. You can start a new \
                   list without the continue parameter, or use the continue token in this response to retrieve the \
                   remainder of the results. Continuing with the provided token results in an inconsistent list - \
                   objects that were created, modified, or deleted between the time the first chunk was returned and \
                   now may show up in the list.";
    let last = Key { name: page.start.name.trim_end_matches('\0').to_owned(), ..page.start.clone() };
    Failure::expired(message).with_continue(&Continue::token(None, &last, namespaced))
}

fn state(query: &Query, limited: bool, page: Option<&Continue>) -> Result<State, Failure> {
    let version = query.get("resourceVersion");
    let matching = query.get("resourceVersionMatch");
    let forbidden = |what: &str| Err(list_options(Cause::forbidden("resourceVersionMatch", what)));
    match (version, matching) {
        (None, Some(_)) => forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided"),
        (_, Some(_)) if page.is_some() => forbidden("resourceVersionMatch is forbidden when continue is provided"),
        (Some(version), None) if page.is_some() && version != "0" => {
            Err(Failure::bad_request("specifying resource version is not allowed when using continue"))
        }
        (Some("0"), Some("Exact")) => {
            forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
        }
        (Some("0"), _) => Ok(State::Any),
        (Some(_), Some("Exact")) => exact(query),
        (Some(_), None) if limited => exact(query),
        (_, None | Some("NotOlderThan")) => Ok(State::Now),
        (_, Some(other)) => Err(list_options(Cause::not_supported(
            "resourceVersionMatch",
            &other.into(),
            &["Exact".into(), "NotOlderThan".into(), "".into()],
        ))),
    }
}

fn exact(query: &Query) -> Result<State, Failure> {
    Ok(query.number("resourceVersion")?.map_or(State::Now, State::At))
}

/// 422 of the options of a list or a watch.
pub(super) fn list_options(cause: Cause) -> Failure {
    Failure::invalid(Subject { group: "meta.k8s.io", kind: "ListOptions", name: "" }, &[cause])
}

/// Waits until the store has come to `version`.
pub(super) async fn wait_for(shared: &Shared, version: u64) -> Result<(), Failure> {
    let mut moved = shared.state().store.subscribe();
    let reached = tokio::time::timeout(FRESH, moved.wait_for(|current| *current >= version)).await;
    let current = shared.state().store.version();
    match reached {
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::version_too_large(version, current)),
    }
}

impl Continue {
    /// As the real server makes them; clients must not look inside, but recorded requests carry them.
    fn token(version: Option<u64>, last: &Key, namespaced: bool) -> String {
        let path = if namespaced || last.namespace.is_empty() {
            last.name.clone()
        } else {
            format!("{}/{}", last.namespace, last.name)
        };
        let slash = if version.is_some() { "/" } else { "" };
        let version = version.map_or(-1, |version| i64::try_from(version).unwrap_or(i64::MAX));
        BASE64.encode(format!(r#"{{"v":"meta.k8s.io/v1","rv":{version},"start":"{slash}{path}\u0000"}}"#))
    }

    fn parse(token: &str, namespaced: bool) -> Result<Self, Failure> {
        let bad = |why: &str| Failure::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
        let text = BASE64.decode(token).map_err(|_| bad("illegal base64 data"))?;
        let value: Value = serde_json::from_slice(&text).map_err(|_| {
            let first = text.first().map(|byte| char::from(*byte)).unwrap_or_default();
            bad(&format!("invalid character '{first}' looking for beginning of value"))
        })?;
        let (Some("meta.k8s.io/v1"), Some(version), Some(start)) =
            (value["v"].as_str(), value["rv"].as_i64(), value["start"].as_str())
        else {
            return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        };
        let start = start.trim_start_matches('/');
        let (namespace, name) = match start.split_once('/') {
            Some((namespace, name)) if !namespaced => (namespace, name),
            _ => ("", start),
        };
        Ok(Self { version: u64::try_from(version).ok(), start: Key::new(namespace, name) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_that_of_the_real_server() {
        let token = Continue::token(Some(579), &Key::new("demo", "curl"), false);
        assert_eq!(token, "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NTc5LCJzdGFydCI6Ii9kZW1vL2N1cmxcdTAwMDAifQ");
        let page = Continue::parse(&token, false).unwrap();
        assert_eq!((page.version, page.start), (Some(579), Key::new("demo", "curl\0")));
    }
}
