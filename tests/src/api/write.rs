//! Creates, replaces, patches and deletes: what a write becomes before it is stored.

use std::sync::Arc;

use serde_json::Value;

use super::{
    State, apply, crd, defaults, event, form,
    kinds::Kind,
    ownership::{self, Difference, Manager},
    patch,
    request::Query,
    shape::Shape,
    status::{Cause, Failure, Subject},
    store::Key,
    time, typed, validate,
};

/// A write and who makes it.
pub(super) struct Write<'a> {
    pub(super) kind: Arc<Kind>,
    pub(super) namespace: Option<&'a str>,
    pub(super) name: Option<&'a str>,
    pub(super) status: bool,
    pub(super) query: &'a Query,
    /// From the header `User-Agent`, for a write without `fieldManager`.
    pub(super) agent: &'a str,
}

/// The answer to a write.
pub(super) struct Done {
    pub(super) code: u16,
    pub(super) object: Value,
}

/// How a patch came.
pub(super) struct Patch<'a> {
    pub(super) media: &'a str,
    pub(super) body: &'a [u8],
}

impl Write<'_> {
    fn key(&self, name: &str) -> Key {
        Key::new(self.namespace.filter(|_| self.kind.namespaced).unwrap_or_default(), name)
    }

    fn subject<'a>(&'a self, name: &'a str) -> Subject<'a> {
        Subject { group: &self.kind.group, kind: &self.kind.plural, name }
    }

    fn invalid(&self, name: &str, cause: Cause) -> Failure {
        // Built-in kinds of the core group have no group here; the others and custom resources have.
        Failure::invalid(Subject { group: &self.kind.group, kind: &self.kind.kind, name }, &[cause])
    }

    pub(super) fn dry(&self) -> Result<bool, Failure> {
        match self.query.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => {
                Err(Failure::bad_request(format!("dryRun: Unsupported value: {other:?}: supported values: \"All\"")))
            }
        }
    }

    fn manager(&self, applied: bool) -> Manager {
        let prefix = self.agent.split('/').next().filter(|prefix| !prefix.is_empty()).unwrap_or("unknown");
        Manager {
            name: self.query.get("fieldManager").unwrap_or(prefix).to_owned(),
            applied,
            api_version: self.kind.api_version(),
            subresource: if self.status { "status".to_owned() } else { String::new() },
            time: time::now(),
            set: ownership::Set::new(),
        }
    }

    /// The form in which the store has this kind.
    fn stored(&self, state: &State) -> Arc<Kind> {
        if self.kind.is_view() { state.core_event() } else { Arc::clone(&self.kind) }
    }

    pub(super) fn commit(&self, state: &mut State, mut object: Value) -> Result<Value, Failure> {
        if self.dry()? {
            return Ok(object);
        }
        let stored = self.stored(state);
        if self.kind.is_view() {
            object = event::to_core(object);
        }
        let entry = state.store.put(&stored, &mut object);
        crd::stored(state, &self.kind, &object)?;
        Ok(form::value(&self.kind, &entry))
    }

    /// POST.
    pub(super) fn create(&self, state: &mut State, mut object: Value) -> Result<Done, Failure> {
        self.same_type(&object)?;
        generate_name(&mut object);
        self.decode(&mut object)?;
        self.namespace_there(state)?;
        self.named(&object)?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if object["metadata"]["resourceVersion"].as_str().is_some_and(|version| !version.is_empty()) {
            return Err(Failure::new(
                500,
                "InternalError",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        self.validate(&object, None)?;
        if state.store.get(&self.kind.collection, &self.key(&name)).is_some() {
            return Err(Failure::exists(self.subject(&name)));
        }
        let who = self.manager(false);
        self.born(&mut object);
        let mut ground = self.kind.zero();
        let mut owned = object.clone();
        for side in [&mut ground, &mut owned] {
            if self.kind.status {
                drop_field(side, "status");
            }
        }
        let difference = Difference::between(Shape::of(&self.kind), &ground, &owned);
        ownership::update(&mut object, Vec::new(), who, &difference);
        self.finish(state, object)
    }

    /// The end of a create, by POST or by apply.
    fn finish(&self, state: &mut State, mut object: Value) -> Result<Done, Failure> {
        defaults::prepare(&self.kind, &mut object);
        if self.kind.is("Service") {
            state.services += 1;
            defaults::address(&mut object["spec"], state.services);
        }
        defaults::nulls(&self.kind, &mut object);
        crd::check(&self.kind, &object)?;
        Ok(Done { code: 201, object: self.commit(state, object)? })
    }

    /// Gives an object what the server alone decides.
    fn born(&self, object: &mut Value) {
        let metadata = &mut object["metadata"];
        for theirs in
            ["resourceVersion", "managedFields", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"]
        {
            drop_field(metadata, theirs);
        }
        metadata["uid"] = super::uid().into();
        metadata["creationTimestamp"] = time::now().into();
        if self.kind.generation {
            metadata["generation"] = 1.into();
        }
        if let Some(namespace) = self.namespace.filter(|_| self.kind.namespaced) {
            metadata["namespace"] = namespace.into();
        }
    }

    fn same_type(&self, object: &Value) -> Result<(), Failure> {
        let (api_version, kind) = (&object["apiVersion"], &object["kind"]);
        if *api_version == self.kind.api_version() && *kind == self.kind.kind {
            return Ok(());
        }
        let full = |api_version: &str, kind: &str| {
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            format!("{group}/{version}, Kind={kind}")
        };
        let found = full(api_version.as_str().unwrap_or_default(), kind.as_str().unwrap_or_default());
        let expected = full(&self.kind.api_version(), &self.kind.kind);
        Err(Failure::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: converting ({found}) to ({expected}): unknown conversion",
            kind.as_str().unwrap_or_default(),
            api_version.as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default(),
            self.kind.kind,
        )))
    }

    /// Name and namespace of a new object.
    fn named(&self, object: &Value) -> Result<(), Failure> {
        let asked = object["metadata"]["namespace"].as_str().map(str::to_owned);
        if asked
            .is_some_and(|asked| !asked.is_empty() && self.kind.namespaced && Some(asked.as_str()) != self.namespace)
        {
            let message = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Failure::bad_request(message));
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            let cause = Cause::required("metadata.name", "name or generateName is required");
            return Err(self.invalid("", cause));
        }
        match name_problem(&self.kind, name) {
            None => Ok(()),
            Some(problem) => Err(self.invalid(name, Cause::invalid("metadata.name", format!("{name:?}: {problem}")))),
        }
    }

    fn namespace_there(&self, state: &State) -> Result<(), Failure> {
        let Some(namespace) = self.namespace.filter(|_| self.kind.namespaced) else { return Ok(()) };
        let subject = Subject { group: "", kind: "namespaces", name: namespace };
        let entry =
            state.store.get("namespaces.", &Key::new("", namespace)).ok_or_else(|| Failure::not_found(subject))?;
        if entry.value()["status"]["phase"] == "Terminating" {
            let message = format!(
                "{} is forbidden: unable to create new content in namespace {namespace} because it is being terminated",
                self.kind.plural
            );
            return Err(Failure::forbidden(self.subject(""), message));
        }
        Ok(())
    }

    /// Types and defaults.
    fn decode(&self, object: &mut Value) -> Result<(), Failure> {
        let strict = self.query.get("fieldValidation") == Some("Strict");
        let Some(custom) = &self.kind.custom else {
            typed::prune(&self.kind, object, strict)?;
            defaults::fill(&self.kind, object);
            return Ok(());
        };
        let before = strict.then(|| object.clone());
        custom.schema.prune(object);
        if before.is_some_and(|before| before != *object) {
            return Err(Failure::bad_request("strict decoding error: unknown field"));
        }
        custom.schema.fill(object);
        Ok(())
    }

    fn validate(&self, object: &Value, old: Option<&Value>) -> Result<(), Failure> {
        match &self.kind.custom {
            Some(custom) => validate::check(&self.kind, custom, object, old, self.status),
            None => self.built_in(object),
        }
    }

    fn built_in(&self, object: &Value) -> Result<(), Failure> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        if self.kind.is_view() && object["eventTime"].is_null() && object["series"].is_null() {
            // Event's errors name no group.
            let subject = Subject { group: "", kind: "Event", name };
            return Err(Failure::invalid(subject, &[Cause::required("eventTime", "")]));
        }
        let ingress = object.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
        let is_balanced = object["spec"]["type"] == "LoadBalancer";
        if self.kind.is("Service") && self.status && !is_balanced && ingress.is_some_and(|list| !list.is_empty()) {
            let why = "may only be used when `spec.type` is 'LoadBalancer'";
            return Err(self.invalid(name, Cause::forbidden("status.loadBalancer.ingress", why)));
        }
        Ok(())
    }

    /// The object as it is, or 404.
    pub(super) fn current(&self, state: &State) -> Result<Value, Failure> {
        let name = self.name.unwrap_or_default();
        let entry = state.store.get(&self.kind.collection, &self.key(name));
        Ok(form::value(&self.kind, entry.ok_or_else(|| Failure::not_found(self.subject(name)))?))
    }

    /// PUT.
    pub(super) fn replace(&self, state: &mut State, object: Value) -> Result<Done, Failure> {
        self.same_type(&object)?;
        let name = self.name.unwrap_or_default();
        if object["metadata"]["name"] != name {
            let theirs = object["metadata"]["name"].as_str().unwrap_or_default();
            let message = format!("the name of the object ({theirs}) does not match the name on the URL ({name})");
            return Err(Failure::bad_request(message));
        }
        let old = self.current(state)?;
        self.change(state, &old, object, false)
    }

    /// PATCH.
    pub(super) fn patch(&self, state: &mut State, how: &Patch<'_>) -> Result<Done, Failure> {
        if how.media == patch::APPLY {
            return self.apply(state, how.body);
        }
        let old = self.current(state)?;
        let mut new = old.clone();
        let body = || serde_json::from_slice(how.body).map_err(|error| Failure::bad_request(error.to_string()));
        match how.media {
            patch::JSON => patch::json(&mut new, how.body)?,
            patch::MERGE => patch::merge(&mut new, &body()?),
            _ => patch::strategic(Shape::of(&self.kind), &mut new, &body()?)?,
        }
        // What a patch does not say about the version is no condition.
        let said = new["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"];
        if !said {
            drop_field(&mut new["metadata"], "resourceVersion");
        }
        self.change(state, &old, new, false)
    }

    /// Apply, as YAML or JSON.
    fn apply(&self, state: &mut State, body: &[u8]) -> Result<Done, Failure> {
        if self.query.get("fieldManager").is_none() {
            let subject = Subject { group: "meta.k8s.io", kind: "PatchOptions", name: "" };
            return Err(Failure::invalid(subject, &[Cause::required("fieldManager", "is required for apply patch")]));
        }
        let mut config = super::yaml(body)?;
        self.same_type(&config)?;
        let name = self.name.unwrap_or_default();
        config["metadata"]["name"] = name.into();
        if !config["metadata"]["managedFields"].is_null() {
            return Err(Failure::bad_request("metadata.managedFields must be nil"));
        }
        drop_field(&mut config["metadata"], "managedFields");
        let force = self.query.is_true("force");
        let exists = state.store.get(&self.kind.collection, &self.key(name)).is_some();
        if !exists && self.status {
            return Err(Failure::not_found(self.subject(name)));
        }
        // What this endpoint does not write is not owned through it.
        let mut owned = config.clone();
        if self.status {
            keep(&mut owned, &["apiVersion", "kind", "metadata", "status"]);
            drop_field(&mut owned["metadata"], "annotations");
            drop_field(&mut owned["metadata"], "labels");
        } else if self.kind.status {
            drop_field(&mut owned, "status");
        }
        let shape = Shape::of(&self.kind);
        if exists {
            let old = self.current(state)?;
            let mut new = apply::apply(shape, &old, &owned, self.manager(true), force)?;
            if config["metadata"].get("resourceVersion").is_none() {
                drop_field(&mut new["metadata"], "resourceVersion");
            }
            return self.change(state, &old, new, true);
        }
        self.namespace_there(state)?;
        self.named(&config)?;
        let mut object = apply::apply(shape, &self.kind.zero(), &owned, self.manager(true), force)?;
        object["apiVersion"] = self.kind.api_version().into();
        object["kind"] = self.kind.kind.clone().into();
        let fields = object["metadata"]["managedFields"].clone();
        self.decode(&mut object)?;
        self.validate(&object, None)?;
        self.born(&mut object);
        if !fields.is_null() {
            object["metadata"]["managedFields"] = fields;
        }
        self.finish(state, object)
    }

    /// Any change of an existing object. `managed`: ownership has been settled.
    fn change(&self, state: &mut State, old: &Value, mut new: Value, managed: bool) -> Result<Done, Failure> {
        let name = self.name.unwrap_or_default();
        let version = &new["metadata"]["resourceVersion"];
        if !version.is_null() && *version != "" && *version != old["metadata"]["resourceVersion"] {
            return Err(Failure::stale(self.subject(name)));
        }
        let uid = &new["metadata"]["uid"];
        if !uid.is_null() && *uid != old["metadata"]["uid"] {
            let why = format!(
                "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                uid.as_str().unwrap_or_default(),
                old["metadata"]["uid"].as_str().unwrap_or_default()
            );
            return Err(Failure::conflict(self.subject(name), &why));
        }
        let settled = new["metadata"].get("managedFields").cloned();
        self.keep_fixed(old, &mut new);
        self.decode(&mut new)?;
        defaults::nulls(&self.kind, &mut new);
        self.validate(&new, Some(old))?;
        if managed {
            set_or_drop(&mut new["metadata"], "managedFields", settled);
        } else {
            let difference = Difference::between(Shape::of(&self.kind), old, &new);
            ownership::update(&mut new, ownership::managers(old), self.manager(false), &difference);
        }
        if new == *old {
            return Ok(Done { code: 200, object: new });
        }
        if self.kind.generation && !self.status && differs_in_spec(old, &new) {
            new["metadata"]["generation"] = (old["metadata"]["generation"].as_u64().unwrap_or(0) + 1).into();
        }
        if is_deleted(&new)
            && new["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)
            && !self.kind.is("Pod")
        {
            return self.vanish(state, new);
        }
        Ok(Done { code: 200, object: self.commit(state, new)? })
    }

    /// What a change cannot change, depending on the endpoint.
    fn keep_fixed(&self, old: &Value, new: &mut Value) {
        if self.status {
            let status = new.get("status").cloned();
            let metadata = new["metadata"].clone();
            *new = old.clone();
            set_or_drop(new, "status", status);
            if self.kind.custom.is_none() {
                // Built-in kinds let labels and annotations through here.
                for name in ["labels", "annotations"] {
                    set_or_drop(&mut new["metadata"], name, metadata.get(name).cloned());
                }
            }
        } else {
            if self.kind.status {
                set_or_drop(new, "status", old.get("status").cloned());
            }
            for fixed in [
                "name",
                "namespace",
                "uid",
                "creationTimestamp",
                "generation",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "managedFields",
                "generateName",
            ] {
                set_or_drop(&mut new["metadata"], fixed, old["metadata"].get(fixed).cloned());
            }
        }
        set_or_drop(&mut new["metadata"], "resourceVersion", old["metadata"].get("resourceVersion").cloned());
        set_or_drop(&mut new["metadata"], "managedFields", old["metadata"].get("managedFields").cloned());
    }

    /// The last finalizer is gone.
    pub(super) fn vanish(&self, state: &mut State, object: Value) -> Result<Done, Failure> {
        if !self.dry()? {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let stored = self.stored(state);
            state.store.remove(&stored, &self.key(name));
            crd::removed(state, &self.kind, &object);
        }
        Ok(Done { code: 200, object })
    }
}

fn generate_name(object: &mut Value) {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    let (name, prefix) = (text("name"), text("generateName"));
    if name.is_empty() && !prefix.is_empty() {
        object["metadata"]["name"] = format!("{prefix}{}", super::random_suffix()).into();
    }
}

pub(super) fn is_deleted(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// Anything but metadata and status.
fn differs_in_spec(old: &Value, new: &Value) -> bool {
    let rest = |object: &Value| {
        let mut object = object.clone();
        drop_field(&mut object, "metadata");
        drop_field(&mut object, "status");
        object
    };
    rest(old) != rest(new)
}

fn keep(object: &mut Value, names: &[&str]) {
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|name, _| names.contains(&name.as_str()));
    }
}

fn drop_field(object: &mut Value, name: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(name);
    }
}

fn set_or_drop(object: &mut Value, name: &str, value: Option<Value>) {
    match value {
        Some(value) => object[name] = value,
        None => drop_field(object, name),
    }
}

/// RFC 1123 names: a label for namespaces and services, a subdomain for others; RBAC allows path segments.
fn name_problem(kind: &Kind, name: &str) -> Option<&'static str> {
    if kind.group == "rbac.authorization.k8s.io" {
        let bad = name.contains('/') || name.contains('%') || name == "." || name == "..";
        return bad.then_some("may not contain '/'");
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if ["Namespace", "Service"].iter().any(|is| kind.is(is)) {
        let fine = label(name) && name.len() <= 63;
        return (!fine).then_some(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
             end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
        );
    }
    let fine = name.split('.').all(label) && name.len() <= 253;
    (!fine).then_some(
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
         and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
    )
}
