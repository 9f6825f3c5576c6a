//! Manifests: the text of a file, to what is in force.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use super::{
    DEFAULT_ROOT_NAMESPACE, Site,
    index::{Change, Index, Surroundings},
    object::{Kind, Object},
    parse,
    store::Store,
    yaml,
};
use crate::model::DEFAULT_TRUST_DOMAIN;

/// A file of manifests, policies among them: read, joined to a snapshot, and again, which changes nothing.
pub fn manifests(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let path = Arc::new(PathBuf::from("a.yaml"));
    let read = parse::file(&path, text);
    let lines = text.split(['\n', '\r']).count() + 1;
    let problems = read.as_ref().map_or_else(std::slice::from_ref, |parsed| parsed.problems.as_slice());
    for problem in problems {
        assert!(problem.location.line <= lines, "{problem} of {lines}");
        assert!(!problem.message.is_empty() && !problem.remedy.is_empty(), "{problem}");
    }
    if let Ok(parsed) = &read {
        assert_closed(parsed);
        as_served(text);
    }
    let mut store = Store::default();
    store.put(path, read);
    let in_force = store.in_force();
    let mut index = Index::new(Site {
        node: "here".into(),
        trust_domain: DEFAULT_TRUST_DOMAIN.into(),
        root_namespace: DEFAULT_ROOT_NAMESPACE.into(),
        first_generation: 1,
        former: Arc::default(),
    });
    let surroundings = Surroundings {
        problems: in_force.problems.into(),
        netns: Arc::new(BTreeMap::from([("/run/netns/a".into(), 1)])),
        ..Surroundings::default()
    };
    let changes: Vec<_> = in_force.objects.into_iter().map(Change::Put).collect();
    if let Some(mesh) = index.apply(changes.clone(), &surroundings) {
        for workload in mesh.workloads.values() {
            for name in [&workload.name.namespace, &workload.name.name] {
                assert!(parse::is_name(name), "{name:?}");
            }
        }
    }
    assert!(index.apply(changes, &surroundings).is_none(), "the same again is another snapshot");
}

/// A policy that cannot be read lets nobody in, unless it would refuse nobody in any case.
fn assert_closed(parsed: &parse::Parsed) {
    for entry in &parsed.entries {
        let is_policy = matches!(entry.key.kind, Kind::PeerAuthentication | Kind::AuthorizationPolicy);
        assert!(entry.object.is_none() || entry.otherwise.is_none());
        if entry.key.kind == Kind::PeerAuthentication {
            assert!(entry.object.is_some() || entry.otherwise.is_some(), "{} is open", entry.key);
        }
        let is_doubtful = match entry.otherwise.as_deref() {
            Some(Object::Pod(pod)) => pod.settings.doubt.is_some(),
            Some(Object::Namespace(settings)) => settings.doubt.is_some(),
            otherwise => is_policy || otherwise.is_none(),
        };
        assert!(is_doubtful, "{}", entry.key);
    }
}

/// The same documents as if an API server had given them.
fn as_served(text: &str) {
    for document in yaml::documents(text).unwrap_or_default() {
        for kind in Kind::ALL {
            let named = parse::served_name(kind, &document);
            let served = parse::served(kind, &document);
            assert_eq!(named.is_ok(), served.is_ok());
            if let Ok(served) = served {
                assert_eq!(Some(served.name), named.ok());
            }
        }
    }
}
