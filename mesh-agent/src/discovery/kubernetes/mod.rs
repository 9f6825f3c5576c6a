//! The source `--kubernetes`: watches of the API server.
//!
//! Each kind has a `watch` of its own, which tells what it sees over a channel. What arrives is trimmed while it is parsed
//! (`trim`) and goes the way of the manifests from there: the same parser, the last good version of each object in force
//! (`store`), the same index.

mod backoff;
mod failure;
mod health;
mod request;
mod resource;
mod store;
mod survey;
mod trim;
mod watch;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch as channel},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Site,
    index::{Change, Index, Surroundings},
    object::Kind,
};
use crate::{
    kubernetes::{Access, Error},
    model::{Mesh, Node},
};
use health::Health;
use store::Store;
use watch::{Event, Watch};

pub use survey::{Outcome, survey};

/// Changes come in bursts; what comes within this time is one.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// Events that watches may be ahead of us.
const AHEAD: usize = 1024;

/// How patient the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The first pause after a failure; it doubles each time.
    pub first_retry: Duration,
    /// The longest pause.
    pub most_retry: Duration,
    /// How often it is looked whether a kind has come that the server does not have.
    pub absent: Duration,
    /// How long a watch lasts at least; at most twice as long.
    pub watch: Duration,
    /// How long a watch may be silent: bookmarks come every minute.
    pub silence: Duration,
    /// After which time it is told what is missing for the first snapshot.
    pub patience: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            first_retry: Duration::from_millis(500),
            most_retry: Duration::from_secs(30),
            absent: Duration::from_mins(1),
            watch: Duration::from_mins(5),
            silence: Duration::from_secs(150),
            patience: Duration::from_secs(30),
        }
    }
}

/// The objects of a cluster as the source of the mesh.
pub struct Cluster {
    access: Arc<Access>,
    site: Site,
    timing: Timing,
    index: Index,
    store: Store,
    health: Health,
    /// What has not been published yet.
    changes: Vec<Change>,
    surroundings: Surroundings,
    has_changed: bool,
    is_published: bool,
}

impl Cluster {
    /// The cluster that `access` leads to, as seen from `site`.
    pub fn new(access: Access, site: Site) -> Self {
        Self::with(access, site, Timing::default())
    }

    /// The same with other patience.
    pub fn with(access: Access, site: Site, timing: Timing) -> Self {
        Self {
            access: Arc::new(access),
            index: Index::new(site.clone()),
            health: Health::new(&resource::all(&site.node), site.node.clone()),
            site,
            timing,
            store: Store::default(),
            changes: Vec::new(),
            surroundings: Surroundings::default(),
            has_changed: false,
            is_published: false,
        }
    }

    /// Publishes a snapshot as soon as all kinds have been read, and another after every change. Until then it publishes
    /// what is wrong, in snapshots of version 0, which say nothing else. Lasts until nobody listens any more, or until it
    /// is dropped.
    ///
    /// # Errors
    /// It is not known where the API server is, or the agent cannot be its client. That it does not answer is no error.
    pub async fn run(mut self, publish: channel::Sender<Arc<Mesh>>) -> Result<(), Error> {
        let server = self.access.server().await?;
        self.surroundings.source.description = format!("kubernetes {server}").into();
        let (tell, mut told) = mpsc::channel(AHEAD);
        let mut watches = JoinSet::new();
        for resource in resource::all(&self.site.node) {
            // Each its own: of the connections of a client that was cut off, others would be tried first.
            let client = self.access.watcher().await?;
            let watch = Watch::new(resource, Arc::clone(&self.access), client, self.timing, tell.clone());
            watches.spawn(watch.run());
        }
        let patience = Instant::now() + self.timing.patience;
        let mut due: Option<Instant> = None;
        let mut events = Vec::new();
        loop {
            let has_waited = self.health.has_waited();
            let due_at = due.unwrap_or(patience);
            tokio::select! {
                () = publish.closed() => return Ok(()),
                Some(Err(ended)) = watches.join_next() => {
                    // A watch ends only by our will, or by a mistake of ours: then not only its kind is to stand still.
                    if let Ok(panic) = ended.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                }
                _ = told.recv_many(&mut events, AHEAD) => {
                    for (kind, event) in events.drain(..) {
                        self.note(kind, event);
                    }
                    if due.is_none() && self.is_to_be_told() {
                        due = Some(Instant::now() + DEBOUNCE);
                    }
                }
                () = sleep_until(due_at), if due.is_some() => {
                    due = None;
                    self.publish(&publish);
                }
                () = sleep_until(patience), if !has_waited => {
                    self.health.waited();
                    due = due.or(Some(Instant::now()));
                }
            }
        }
    }

    fn note(&mut self, kind: Kind, event: Event) {
        let before = self.changes.len();
        match event {
            Event::Put(arrived) => self.store.put(kind, arrived, &mut self.changes),
            Event::Delete(name) => self.store.delete(kind, &name, &mut self.changes),
            Event::Listing => self.store.list(kind),
            Event::Synced => {
                self.store.synced(kind, &mut self.changes);
                self.has_changed |= self.health.synced(kind);
            }
            Event::Absent => {
                self.store.clear(kind, &mut self.changes);
                self.has_changed |= self.health.absent(kind);
            }
            Event::Following => self.has_changed |= self.health.following(kind),
            Event::Lost => self.has_changed |= self.health.lost(kind),
            Event::Broken(failure) => self.has_changed |= self.health.broken(kind, failure),
        }
        self.has_changed |= self.changes.len() != before || self.store.has_other_problems();
    }

    /// Before all is there, only what is wrong with the watches is told.
    fn is_to_be_told(&self) -> bool {
        self.has_changed && (self.is_published || self.health.is_complete() || self.health.is_troubled())
    }

    fn publish(&mut self, publish: &channel::Sender<Arc<Mesh>>) {
        self.has_changed = false;
        let is_first = !self.is_published && self.health.is_complete();
        self.is_published |= is_first;
        let has_own_node = !self.store.is_empty(Kind::Node);
        let mut problems = self.health.problems(has_own_node);
        problems.extend(self.store.problems().cloned());
        let Surroundings { problems: before, source, .. } = &mut self.surroundings;
        let has_other_problems = problems != **before;
        if has_other_problems {
            *before = problems.into();
        }
        source.read_at = self.health.read_at();
        source.is_followed = self.health.is_followed();
        source.absent = self.health.absentees();
        source.objects = self.store.len();
        if !self.is_published {
            let node = Node { name: Arc::clone(&self.site.node), ..Node::default() };
            let (problems, source) = (Arc::clone(before), source.clone());
            publish.send_replace(Arc::new(Mesh { node, problems, source, ..Mesh::default() }));
            return;
        }
        let is_news = is_first || has_other_problems || !self.changes.is_empty();
        let mesh = if is_news { self.index.apply(self.changes.drain(..), &self.surroundings) } else { None };
        if let Some(mesh) = mesh {
            tracing::debug!(version = mesh.version, problems = mesh.problems.len(), "read from the API server");
            publish.send_replace(mesh);
        } else {
            let mesh = self.index.refresh(self.surroundings.source.clone());
            publish.send_if_modified(|current| {
                *current = mesh;
                false
            });
        }
    }
}
