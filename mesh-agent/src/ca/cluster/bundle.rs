//! Whom to trust, in a ConfigMap that agents mount.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use super::keeper::api_error;
use crate::ca::{Error, pem};

/// The key of the bundle.
const KEY: &str = "bundle.pem";

/// The ConfigMap.
pub(super) struct Bundle {
    api: Api<ConfigMap>,
    name: String,
    strangers: Strangers,
}

/// As it was read.
pub(super) struct Published {
    map: Option<ConfigMap>,
}

impl Published {
    fn text(&self) -> Option<&str> {
        self.map.as_ref()?.data.as_ref()?.get(KEY).map(String::as_str)
    }

    /// Whether somebody is trusted already.
    pub(super) fn has_roots(&self) -> bool {
        self.text().is_some_and(|text| pem::read_certificates(text.as_bytes()).is_ok())
    }
}

impl Bundle {
    /// For so long, a root that is published and not ours is left alone.
    pub(super) fn new(client: &Client, namespace: &str, name: &str, patience: Duration) -> Self {
        let api = Api::namespaced(client.clone(), namespace);
        Self { api, name: name.to_owned(), strangers: Strangers { since: HashMap::new(), patience } }
    }

    pub(super) async fn read(&self) -> Result<Published, Error> {
        let read = self.api.get_opt(&self.name).await;
        Ok(Published { map: read.map_err(|error| self.error("read", error))? })
    }

    /// Publishes the roots, unless they are. Fails if somebody else has written since it was read.
    pub(super) async fn write(&mut self, published: Published, roots: &[CertificateDer<'static>]) -> Result<(), Error> {
        let Some(text) = self.strangers.wanted(published.text(), roots, Instant::now()) else { return Ok(()) };
        let params = PostParams::default();
        let written = if let Some(mut map) = published.map {
            map.data.get_or_insert_default().insert(KEY.to_owned(), text);
            self.api.replace(&self.name, &params, &map).await
        } else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let data = Some(BTreeMap::from([(KEY.to_owned(), text)]));
            self.api.create(&params, &ConfigMap { metadata, data, ..ConfigMap::default() }).await
        };
        written.map_err(|error| self.error("write", error))?;
        tracing::info!(name = self.name, roots = roots.len(), "the trust bundle is published");
        Ok(())
    }

    fn error(&self, doing: &str, source: kube::Error) -> Error {
        api_error(format!("{doing} the ConfigMap {}", self.name), source)
    }
}

/// Roots that are published and not ours. Another replica may see its mounted Secret sooner.
struct Strangers {
    since: HashMap<CertificateDer<'static>, Instant>,
    patience: Duration,
}

impl Strangers {
    /// What is to be written; nothing if the same roots are published.
    fn wanted(&mut self, published: Option<&str>, ours: &[CertificateDer<'static>], now: Instant) -> Option<String> {
        let published = published.and_then(|text| pem::read_certificates(text.as_bytes()).ok()).unwrap_or_default();
        self.since.retain(|stranger, _| published.contains(stranger) && !ours.contains(stranger));
        let mut wanted = ours.to_vec();
        for stranger in published.iter().filter(|root| !ours.contains(root)) {
            let since = *self.since.entry(stranger.clone()).or_insert(now);
            if now.duration_since(since) < self.patience {
                wanted.push(stranger.clone());
            }
        }
        let are_same = wanted.len() == published.len() && wanted.iter().all(|root| published.contains(root));
        (!are_same).then(|| pem::certificates(&wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().self_signed(&key).unwrap().into()
    }

    fn text(roots: &[&CertificateDer<'static>]) -> String {
        pem::certificates(&roots.iter().map(|root| (*root).clone()).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_published_is_ours_and_written_when_it_is_not() {
        let mut strangers = Strangers { since: HashMap::new(), patience: Duration::ZERO };
        let (own, other) = (root(), root());
        let mut wanted =
            |published: Option<&str>| strangers.wanted(published, std::slice::from_ref(&own), Instant::now());
        let good = text(&[&own]);
        for bad in [None, Some(""), Some("garbage"), Some(&*text(&[&other])), Some(&*text(&[&other, &own]))] {
            assert_eq!(wanted(bad).as_deref(), Some(&*good), "{bad:?}");
        }
        assert_eq!(wanted(Some(&good)), None);
    }

    #[test]
    fn two_that_see_their_folders_at_different_times_do_not_fight() {
        let patience = Duration::from_mins(1);
        let [mut a, mut b] = [(); 2].map(|()| Strangers { since: HashMap::new(), patience });
        let (old, new) = (root(), root());
        let start = Instant::now();
        let both = a.wanted(Some(&text(&[&old])), std::slice::from_ref(&new), start).unwrap();
        assert_eq!(both, text(&[&new, &old]));
        assert_eq!(b.wanted(Some(&both), std::slice::from_ref(&old), start), None);
        let later = start + patience;
        assert_eq!(b.wanted(Some(&both), std::slice::from_ref(&new), start), None);
        assert_eq!(a.wanted(Some(&both), std::slice::from_ref(&new), later), Some(text(&[&new])));
    }
}
