//! The end of a namespace: everything in it is deleted, and when it is empty it goes itself.

use std::sync::Arc;

use serde_json::Value;

use super::{Shared, State, kinds::Kind, request::Query, store::Key, write::Write};

/// Deletes what is in a namespace, waits until nothing is left (pods on nodes end when their kubelet says so), removes it.
pub(super) async fn end(shared: Arc<Shared>, name: String) {
    let mut moved = shared.state().store.subscribe();
    loop {
        moved.mark_unchanged();
        if empty(&mut shared.state(), &name) {
            break;
        }
        if moved.changed().await.is_err() {
            return;
        }
    }
    let mut state = shared.state();
    if let Some(kind) = state.find("", "v1", "namespaces") {
        state.store.remove(&kind, &Key::new("", name));
    }
}

/// Deletes what is not being deleted; true: nothing is left.
fn empty(state: &mut State, name: &str) -> bool {
    let kinds: Vec<_> =
        state.kinds().into_iter().filter(|kind| kind.namespaced && !kind.is_view() && !kind.review).collect();
    for kind in &kinds {
        delete_all(state, kind, name);
    }
    !kinds.iter().any(|kind| state.store.contains_namespace(&kind.collection, name))
}

fn delete_all(state: &mut State, kind: &Arc<Kind>, namespace: &str) {
    let names: Vec<_> = state
        .store
        .objects(&kind.collection, Some(namespace), None)
        .filter(|(_, entry)| entry.value()["metadata"]["deletionTimestamp"].is_null())
        .map(|(key, _)| key.name.clone())
        .collect();
    for name in names {
        let write = Write {
            kind: Arc::clone(kind),
            namespace: Some(namespace),
            name: Some(&name),
            status: false,
            query: &Query::default(),
            agent: "kube-controller-manager",
        };
        // Held by a finalizer, or gone meanwhile: both are seen at the next look.
        let _ = write.delete(state, &Value::Null);
    }
}
