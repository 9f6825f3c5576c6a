//! Deletes: finalizers, the grace of pods, namespaces that end after what is in them.

use serde_json::{Value, json};

use super::{
    State, Work,
    status::{Failure, Subject},
    time,
    write::{Done, Write, is_deleted},
};

impl Write<'_> {
    /// DELETE.
    pub(super) fn delete(&self, state: &mut State, options: &Value) -> Result<Done, Failure> {
        let name = self.name.unwrap_or_default();
        let old = self.current(state)?;
        self.preconditions(&old, options)?;
        let mut new = old.clone();
        let grace = self.grace(&old, options);
        let held = old["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        let waits = self.kind.is("Pod") && grace > 0;
        if self.kind.is("Namespace") {
            return self.terminate(state, new);
        }
        if held || waits {
            if is_deleted(&old) && !waits && old["metadata"]["deletionGracePeriodSeconds"] == 0 {
                return Ok(Done { code: 200, object: old });
            }
            let repeated = is_deleted(&old) && old["metadata"]["deletionGracePeriodSeconds"].as_u64() <= Some(grace);
            if repeated && waits {
                return Ok(Done { code: 200, object: old });
            }
            new["metadata"]["deletionTimestamp"] = time::after(grace).into();
            new["metadata"]["deletionGracePeriodSeconds"] = grace.into();
            if self.kind.generation && !is_deleted(&old) {
                new["metadata"]["generation"] = (old["metadata"]["generation"].as_u64().unwrap_or(0) + 1).into();
            }
            return Ok(Done { code: 200, object: self.commit(state, new)? });
        }
        if self.kind.is("Pod") && is_deleted(&old) && old["metadata"]["deletionGracePeriodSeconds"] != 0 {
            // As the kubelet's last delete: one more change, then none.
            new["metadata"]["deletionGracePeriodSeconds"] = 0.into();
            new["metadata"]["deletionTimestamp"] = time::now().into();
            self.commit(state, new.clone())?;
        }
        let uid = old["metadata"]["uid"].clone();
        let done = self.vanish(state, new)?;
        if self.kind.returns_deleted() {
            return Ok(done);
        }
        let mut details = json!({"name": name, "kind": self.kind.plural, "uid": uid});
        if !self.kind.group.is_empty() {
            details["group"] = self.kind.group.clone().into();
        }
        let object =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
        Ok(Done { code: 200, object })
    }

    fn preconditions(&self, old: &Value, options: &Value) -> Result<(), Failure> {
        let name = self.name.unwrap_or_default();
        // The real server says the kind here.
        let subject = Subject { group: &self.kind.group, kind: &self.kind.kind, name };
        for (field, shown) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            let wanted = &options["preconditions"][field];
            let found = &old["metadata"][field];
            if !wanted.is_null() && wanted != found {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let might = if field == "uid" { "deleted and then recreated" } else { "modified" };
                let why = format!(
                    "the {shown} in the precondition ({}) does not match the {shown} in record ({}). The object might \
                     have been {might}",
                    text(wanted),
                    text(found)
                );
                return Err(Failure::conflict(subject, &why));
            }
        }
        Ok(())
    }

    /// Seconds until a pod may be taken away without its kubelet.
    fn grace(&self, old: &Value, options: &Value) -> u64 {
        if !self.kind.is("Pod") {
            return 0;
        }
        let ended = matches!(old["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let unscheduled = old["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
        let asked =
            options["gracePeriodSeconds"].as_u64().or_else(|| self.query.number("gracePeriodSeconds").ok().flatten());
        match asked {
            Some(0) => 0,
            _ if ended || unscheduled => 0,
            Some(seconds) => seconds,
            None => old["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30),
        }
    }

    /// A namespace ends after all in it has, which its controller does.
    fn terminate(&self, state: &mut State, mut namespace: Value) -> Result<Done, Failure> {
        if !is_deleted(&namespace) {
            namespace["metadata"]["deletionTimestamp"] = time::now().into();
            namespace["status"]["phase"] = "Terminating".into();
            namespace = self.commit(state, namespace)?;
            if !self.dry()? {
                state.work.push(Work::End(self.name.unwrap_or_default().to_owned()));
            }
        }
        Ok(Done { code: 200, object: namespace })
    }
}
