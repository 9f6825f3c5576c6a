//! CustomResourceDefinitions: from a stored one to a kind that is served.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    Shared, State, Work,
    kinds::{APIEXTENSIONS, Custom, Kind},
    ownership::{self, Difference, Manager},
    schema::Schema,
    shape::Shape,
    status::{Cause, Failure, Subject},
    store::Key,
    time,
};

/// Time between the steps of becoming established.
const STEP: Duration = Duration::from_millis(10);

fn is_definition(kind: &Kind) -> bool {
    kind.is("CustomResourceDefinition")
}

/// Refuses a definition that is wrong, or that this server does not understand.
pub(super) fn check(kind: &Kind, object: &Value) -> Result<(), Failure> {
    if !is_definition(kind) {
        return Ok(());
    }
    let spec = &object["spec"];
    let expected = format!(
        "{}.{}",
        spec["names"]["plural"].as_str().unwrap_or_default(),
        spec["group"].as_str().unwrap_or_default()
    );
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if name != expected {
        let subject = Subject { group: APIEXTENSIONS, kind: &kind.kind, name };
        let what = format!("{name:?}: must be spec.names.plural+\".\"+spec.group");
        return Err(Failure::invalid(subject, &[Cause::invalid("metadata.name", what)]));
    }
    if spec["conversion"]["strategy"] != "None" {
        return Err(Failure::unsupported("conversion by webhook"));
    }
    kinds(object).map(|_| ()).map_err(Failure::unsupported)
}

/// A definition was written.
pub(super) fn stored(state: &mut State, kind: &Kind, object: &Value) -> Result<(), Failure> {
    if !is_definition(kind) {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if established(object) {
        // A change of a schema takes effect at once.
        check(kind, object)?;
        if state.serves(&name) {
            state.serve(&name, kinds(object).map_err(Failure::unsupported)?);
        }
    } else if !state.installing.contains(&name) {
        state.installing.push(name.clone());
        state.work.push(Work::Install(name));
    }
    Ok(())
}

/// A definition was deleted: all its objects go with it.
pub(super) fn removed(state: &mut State, kind: &Kind, object: &Value) {
    if !is_definition(kind) {
        return;
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    for kind in state.unserve(name) {
        let keys: Vec<_> = state.store.objects(&kind.collection, None, None).map(|(key, _)| key.clone()).collect();
        for key in keys {
            state.store.remove(&kind, &key);
        }
    }
}

fn established(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Established" && one["status"] == "True"))
}

/// The kinds of a definition, one for each version that is served.
fn kinds(object: &Value) -> Result<Vec<Arc<Kind>>, String> {
    let spec = &object["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let words = |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let names = &spec["names"];
    let (group, plural) = (text(&spec["group"]), text(&names["plural"]));
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    versions
        .iter()
        .filter(|version| version["served"] == true)
        .map(|version| {
            let schema = Schema::parse(&version["schema"]["openAPIV3Schema"])?;
            if version["subresources"]["scale"].is_object() {
                return Err("the subresource scale".to_owned());
            }
            let paths = version["selectableFields"].as_array().into_iter().flatten();
            Ok(Arc::new(Kind {
                group: group.clone(),
                version: text(&version["name"]),
                plural: plural.clone(),
                singular: text(&names["singular"]),
                kind: text(&names["kind"]),
                list: text(&names["listKind"]),
                namespaced: spec["scope"] == "Namespaced",
                short: words(&names["shortNames"]),
                categories: words(&names["categories"]),
                collection: format!("{plural}.{group}"),
                status: version["subresources"]["status"].is_object(),
                generation: true,
                review: false,
                fields: paths.map(|path| text(&path["jsonPath"]).trim_start_matches('.').to_owned()).collect(),
                custom: Some(Arc::new(Custom { schema })),
            }))
        })
        .collect()
}

/// Brings a new definition to `Established`, and its paths up a moment later, as the real server does.
pub(super) async fn install(shared: Arc<Shared>, name: String) {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| json!({"type": kind, "status": status, "lastTransitionTime": time::now(), "reason": reason, "message": message});
    let accepted = condition("NamesAccepted", "True", "NoConflicts", "no conflicts found");
    let message = "the initial names have been accepted";
    for (status, reason) in [("False", "Installing"), ("True", "InitialNamesAccepted")] {
        tokio::time::sleep(STEP).await;
        let conditions = [accepted.clone(), condition("Established", status, reason, message)];
        set_status(&mut shared.state(), &name, &json!(conditions));
    }
    tokio::time::sleep(shared.options.definition_delay).await;
    let mut state = shared.state();
    state.installing.retain(|installing| *installing != name);
    let entry = state.store.get(&format!("customresourcedefinitions.{APIEXTENSIONS}"), &Key::new("", &*name)).cloned();
    if let Some(entry) = entry
        && let Ok(kinds) = kinds(&entry.value())
    {
        state.serve(&name, kinds);
    }
}

fn set_status(state: &mut State, name: &str, conditions: &Value) {
    let Some(kind) = state.find(APIEXTENSIONS, "v1", "customresourcedefinitions") else { return };
    let Some(entry) = state.store.get(&kind.collection, &Key::new("", name)) else { return };
    let old = entry.value();
    let mut new = old.clone();
    new["status"]["conditions"] = conditions.clone();
    let names: BTreeMap<_, _> = old["spec"]["names"].as_object().into_iter().flatten().collect();
    new["status"]["acceptedNames"] = json!(names);
    let who = Manager {
        name: "kube-apiserver".to_owned(),
        applied: false,
        api_version: kind.api_version(),
        subresource: "status".to_owned(),
        time: time::now(),
        set: ownership::Set::new(),
    };
    let difference = Difference::between(Shape::of(&kind), &old, &new);
    ownership::update(&mut new, ownership::managers(&old), who, &difference);
    state.store.put(&kind, &mut new);
}
