//! Keeps the root that signs, the one in its Secret, and the published trust bundle the same.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use kube::Client;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{Options, Root, bundle::Bundle, secret::RootSecret};
use crate::ca::{Authority, Error, Lifetimes, folder::Folder, material::Material};

/// How often Secret (or folder) and ConfigMap are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Time between attempts at the start.
const AGAIN: Duration = Duration::from_secs(1);
/// Kubelets bring a change of a mounted Secret to all replicas within this.
const MOUNTED: Duration = Duration::from_mins(3);

/// Where the root is.
enum Source {
    Folder(Folder),
    Secret(Box<RootSecret>),
}

/// Reads the root, publishes the bundle, and only then lets the authority use it.
pub struct Keeper {
    source: Source,
    bundle: Bundle,
    trust_domain: String,
    lifetimes: Lifetimes,
    new_root: bool,
    held: Option<Material>,
    is_kept: Arc<AtomicBool>,
}

impl Keeper {
    pub(super) fn new(client: &Client, namespace: &str, options: &Options) -> Self {
        let (source, patience) = match &options.root {
            Root::Folder(path) => (Source::Folder(Folder::new(path)), MOUNTED),
            Root::Secret(name) => {
                (Source::Secret(Box::new(RootSecret::new(client, namespace, name, options))), Duration::ZERO)
            }
        };
        Self {
            source,
            bundle: Bundle::new(client, namespace, &options.bundle, patience),
            trust_domain: options.trust_domain.clone(),
            lifetimes: options.lifetimes,
            new_root: options.new_root,
            held: None,
            is_kept: Arc::default(),
        }
    }

    /// What the authority begins with.
    pub(super) async fn first(&mut self) -> Result<Material, Error> {
        let mut last_error = String::new();
        loop {
            match self.look().await {
                Ok(material) => return Ok(material),
                Err(error @ Error::Api { .. }) => {
                    let error = error.to_string();
                    if error != last_error {
                        tracing::warn!(%error, "not ready, and tried again");
                        last_error = error;
                    }
                    sleep(AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether all was as it should be when it was looked at last.
    pub fn is_kept(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_kept)
    }

    /// Keeps on until the end of time.
    pub async fn run(mut self, authority: Arc<Authority>) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_error = String::new();
        loop {
            ticks.tick().await;
            let looked = self.look().await.and_then(|material| authority.put(material, SystemTime::now()));
            self.is_kept.store(looked.is_ok(), Ordering::Relaxed);
            match looked {
                Ok(()) => last_error.clear(),
                Err(error) => {
                    let error = error.to_string();
                    if error != last_error {
                        tracing::error!(%error, "what was in force stays in force");
                        last_error = error;
                    }
                }
            }
        }
    }

    /// The bundle is read first: then the root that is read is never older than it, and a bundle that another replica
    /// writes meanwhile is not overwritten.
    async fn look(&mut self) -> Result<Material, Error> {
        let published = self.bundle.read().await?;
        let now = SystemTime::now();
        let material = match &mut self.source {
            Source::Secret(secret) => secret.read(self.held.as_ref(), published.has_roots(), now).await?,
            Source::Folder(folder) => {
                let mut material = folder.open(&self.trust_domain, &self.lifetimes, now)?;
                if std::mem::take(&mut self.new_root) {
                    folder.replace_root(&self.trust_domain, &self.lifetimes, now)?;
                    material = folder.open(&self.trust_domain, &self.lifetimes, now)?;
                }
                folder.publish(&material.roots())?;
                material
            }
        };
        self.bundle.write(published, &material.roots()).await?;
        self.held = Some(material.clone());
        self.is_kept.store(true, Ordering::Relaxed);
        Ok(material)
    }
}

pub(super) fn api_error(doing: String, source: kube::Error) -> Error {
    Error::Api { doing, source: Box::new(source) }
}
