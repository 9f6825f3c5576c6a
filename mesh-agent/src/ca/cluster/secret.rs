//! The root in a Secret of the authority's namespace, which any number of replicas share: whoever writes says which version
//! was read, and reads again when another was faster.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::SystemTime};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use zeroize::{Zeroize, Zeroizing};

use super::{Options, keeper::api_error};
use crate::ca::{
    Error, Lifetimes,
    certificate::Signer,
    folder::make_root,
    material::{Files, GIVEN, Material, NEXT, ROOT, given, signer},
    pem,
    roots::wants_next,
};

/// How often it is tried again when others write at the same time.
const ATTEMPTS: usize = 5;

/// The Secret.
pub(super) struct RootSecret {
    api: Api<Secret>,
    name: String,
    /// How it is called in errors.
    place: PathBuf,
    trust_domain: String,
    lifetimes: Lifetimes,
    /// Another root is to be made.
    new_root: bool,
}

/// What is in it; nothing is left behind in memory.
#[derive(Default)]
struct Content {
    data: BTreeMap<String, ByteString>,
    place: PathBuf,
}

impl Drop for Content {
    fn drop(&mut self) {
        self.data.values_mut().for_each(|value| value.0.zeroize());
    }
}

impl Files for Content {
    fn has(&self, name: &str) -> bool {
        self.data.get(name).is_some_and(|value| !value.0.is_empty())
    }

    fn read(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        match self.data.get(name) {
            Some(value) => Ok(Zeroizing::new(value.0.clone())),
            None => Err(Error::Unusable {
                path: self.place(name),
                why: "it is missing".to_owned(),
                remedy: "restore the Secret from a backup",
            }),
        }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }
}

impl Content {
    fn put(&mut self, [certificate, key]: [&str; 2], signer: &Signer) {
        let text = pem::certificates(std::slice::from_ref(&signer.certificate));
        self.data.insert(certificate.to_owned(), ByteString(text.into_bytes()));
        self.data.insert(key.to_owned(), ByteString(signer.key_pem().as_bytes().to_vec()));
    }

    fn promote(&mut self) {
        for (next, root) in NEXT.into_iter().zip(ROOT) {
            if let Some(value) = self.data.remove(next) {
                self.data.insert(root.to_owned(), value);
            }
        }
    }
}

/// What is to be done with what was read.
enum Step {
    Use(Material),
    Write(Material, &'static str),
}

impl RootSecret {
    pub(super) fn new(client: &Client, namespace: &str, name: &str, options: &Options) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            name: name.to_owned(),
            place: PathBuf::from(format!("Secret {namespace}/{name}")),
            trust_domain: options.trust_domain.clone(),
            lifetimes: options.lifetimes,
            new_root: options.new_root,
        }
    }

    /// Reads it, and moves a change of roots on. If there is none, what is `held` is put back, or the first root made;
    /// but not if a root `is_published`: that one was lost.
    pub(super) async fn read(
        &mut self,
        held: Option<&Material>,
        is_published: bool,
        now: SystemTime,
    ) -> Result<Material, Error> {
        for _ in 0..ATTEMPTS {
            let read = self.api.get_opt(&self.name).await.map_err(|error| self.error("read", error))?;
            let is_new = read.is_none();
            let mut secret = read.unwrap_or_else(|| self.empty());
            let data = secret.data.take().unwrap_or_default();
            let mut content = Content { data, place: self.place.clone() };
            let (material, what) = match self.step(&mut content, held, is_published, now)? {
                Step::Use(material) => {
                    self.new_root = false;
                    return Ok(material);
                }
                Step::Write(material, what) => (material, what),
            };
            secret.data = Some(std::mem::take(&mut content.data));
            let params = PostParams::default();
            let written = if is_new {
                self.api.create(&params, &secret).await
            } else {
                self.api.replace(&self.name, &params, &secret).await
            };
            drop(Content { data: secret.data.take().unwrap_or_default(), place: PathBuf::new() });
            match written {
                Ok(mut written) => {
                    drop(Content { data: written.data.take().unwrap_or_default(), place: PathBuf::new() });
                    tracing::info!(secret = self.name, "{what}");
                    self.new_root = false;
                    return Ok(material);
                }
                // Another replica was faster.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(self.error("write", error)),
            }
        }
        let conflict = kube::core::Status::failure("others write it all the time", "Conflict").with_code(409);
        Err(self.error("write", kube::Error::Api(conflict.boxed())))
    }

    fn step(
        &self,
        content: &mut Content,
        held: Option<&Material>,
        is_published: bool,
        now: SystemTime,
    ) -> Result<Step, Error> {
        if let Some(given) = given(content)? {
            return Ok(Step::Use(given));
        }
        if !content.has(ROOT[0]) {
            return self.first(content, held, is_published, now);
        }
        let current = Arc::new(signer(content, ROOT)?);
        let next = if content.has(NEXT[0]) { Some(Arc::new(signer(content, NEXT)?)) } else { None };
        if next.is_none() && (self.new_root || wants_next(&current.validity, now)) {
            let next = make_root(&self.trust_domain, &self.lifetimes, now)?;
            content.put(NEXT, &next);
            let material = Material::Own { current, next: Some(Arc::new(next)) };
            return Ok(Step::Write(material, "made the next root: trusted now, signing after the overlap"));
        }
        let material = Material::Own { current, next };
        if material.is_replaced(&self.lifetimes, now) {
            content.promote();
            let material = Material::Own { current: Arc::new(signer(content, ROOT)?), next: None };
            return Ok(Step::Write(material, "the old root is trusted no more"));
        }
        Ok(Step::Use(material))
    }

    fn first(
        &self,
        content: &mut Content,
        held: Option<&Material>,
        is_published: bool,
        now: SystemTime,
    ) -> Result<Step, Error> {
        let unusable =
            |why: &str, remedy| Err(Error::Unusable { path: self.place.clone(), why: why.to_owned(), remedy });
        if !content.data.is_empty() {
            let names = [GIVEN[0][0], GIVEN[1][0], ROOT[0]].join(", ");
            return unusable(
                &format!("it has none of {names}"),
                "give a root or an intermediate (docs/IDENTITY.md), or empty it for a new root",
            );
        }
        match held {
            Some(material @ Material::Own { current, next }) => {
                content.put(ROOT, current);
                if let Some(next) = next {
                    content.put(NEXT, next);
                }
                Ok(Step::Write(material.clone(), "the Secret was lost; the root in force is put back"))
            }
            Some(Material::Given { .. }) => unusable("it is gone", "put it back; what was in force stays in force"),
            None if is_published => unusable(
                "it has no root, but the trust bundle is published: the root was lost",
                "restore the Secret from a backup, or remove the ConfigMap of the bundle for a new root",
            ),
            None => {
                let root = make_root(&self.trust_domain, &self.lifetimes, now)?;
                content.put(ROOT, &root);
                Ok(Step::Write(Material::Own { current: Arc::new(root), next: None }, "made a root"))
            }
        }
    }

    fn empty(&self) -> Secret {
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        Secret { metadata, type_: Some("Opaque".to_owned()), ..Secret::default() }
    }

    fn error(&self, doing: &str, source: kube::Error) -> Error {
        api_error(format!("{doing} the Secret {}", self.name), source)
    }
}
