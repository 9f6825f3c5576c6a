//! The source `--manifests DIR`: a watched folder of Kubernetes objects.
//!
//! Everything happens on the caller's runtime. Files are read with blocking calls: they are local and small, and only
//! what changed is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::sys::inotify::AddWatchFlags;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Site,
    folder::Folder,
    index::{Change, Index, Surroundings},
    netns,
    object::{Key, Loaded, Object},
    store::{InForce, Store},
    watch::{Event, Watch},
};
use crate::model::{Location, Mesh, Problem, Reason, Severity, SourceState};

#[cfg(test)]
mod tests;

/// Events come in bursts; what comes within this time is one change.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// How often everything is looked at without an event: watches do not see all (a link's target, a network file system).
const POLL: Duration = Duration::from_secs(5);
/// The same while there is reason to expect a change: the folder is missing, or cannot be watched.
const FAST_POLL: Duration = Duration::from_millis(250);
/// The same while a namespace is being made: the mount that completes it makes no event.
const NETNS_POLL: Duration = Duration::from_millis(10);
/// How long a namespace may be in the making before it is no longer looked at that often.
const NETNS_PATIENCE: Duration = Duration::from_secs(2);

const FILE_EVENTS: AddWatchFlags =
    AddWatchFlags::IN_MODIFY.union(AddWatchFlags::IN_CLOSE_WRITE).union(AddWatchFlags::IN_ATTRIB).union(ENTRY_EVENTS);
const ENTRY_EVENTS: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF);

/// A folder of manifests as the source of the mesh.
pub struct Manifests {
    folder: Folder,
    poll: Duration,
    store: Store,
    index: Index,
    /// Of the folder itself.
    files: Option<Watch>,
    /// Of the folders above it and above the network namespaces.
    surroundings: Option<Watch>,
    /// Why changes are not seen at once, if so.
    unwatched: Option<String>,
    in_force: InForce,
    /// What is wrong with them, and with the folder.
    problems: Arc<[Problem]>,
    /// What has become of the objects since the index was last told.
    changes: Vec<Change>,
    /// Why the folder could not be listed the last time.
    unreadable: Option<String>,
    /// It could be listed at least once.
    was_listed: bool,
    netns_paths: BTreeSet<PathBuf>,
    netns: netns::Found,
    inodes: Arc<BTreeMap<PathBuf, u64>>,
    netns_unfinished_since: Option<Instant>,
    source: SourceState,
}

impl Manifests {
    /// The folder `dir`.
    pub fn new(dir: &Path, site: Site) -> Self {
        Self::with_poll(dir, site, POLL)
    }

    fn with_poll(dir: &Path, site: Site, poll: Duration) -> Self {
        // Not resolved: a link may point elsewhere tomorrow. Fails only for an empty path.
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let source =
            SourceState { description: format!("manifests {}", dir.display()).into(), ..SourceState::default() };
        Self {
            folder: Folder::new(dir, poll),
            poll,
            store: Store::default(),
            index: Index::new(site),
            files: None,
            surroundings: None,
            unwatched: None,
            in_force: InForce::default(),
            problems: Arc::default(),
            changes: Vec::new(),
            unreadable: None,
            was_listed: false,
            netns_paths: BTreeSet::new(),
            netns: netns::Found::default(),
            inodes: Arc::default(),
            netns_unfinished_since: None,
            source,
        }
    }

    /// Publishes a snapshot at once, even if the folder cannot be read, and another after every change. Lasts until
    /// nobody listens any more, or until it is dropped.
    pub async fn run(mut self, publish: watch::Sender<Arc<Mesh>>) {
        self.start_watching();
        let mut is_first = true;
        loop {
            // Watched before it is read, so that no change falls between.
            let has_changed = self.follow();
            let has_more = self.round(is_first || has_changed, &publish);
            is_first = false;
            if !has_more && !self.wait(&publish).await {
                return;
            }
        }
    }

    fn start_watching(&mut self) {
        match (Watch::new(FILE_EVENTS), Watch::new(ENTRY_EVENTS)) {
            (Ok(files), Ok(surroundings)) => {
                self.files = Some(files);
                self.surroundings = Some(surroundings);
            }
            (Err(error), _) | (_, Err(error)) => self.unwatched = Some(error.to_string()),
        }
    }

    /// Returns whether it is another folder now, or watched another way.
    fn follow(&mut self) -> bool {
        let (Some(files), Some(surroundings)) = (&mut self.files, &mut self.surroundings) else { return false };
        let dir = self.folder.path();
        let above = std::iter::once(dir).chain(self.netns_paths.iter().map(PathBuf::as_path));
        let above = above.filter_map(netns::nearest_folder).collect();
        let is_other_folder = files.follow(&BTreeSet::from([dir.to_owned()]));
        let result = is_other_folder.and_then(|is_other| surroundings.follow(&above).map(|_| is_other));
        let unwatched = result.err().map(|error| error.to_string());
        let is_other_folder = result.unwrap_or(false);
        if is_other_folder {
            self.folder.forget();
        }
        std::mem::replace(&mut self.unwatched, unwatched.clone()) != unwatched || is_other_folder
    }

    /// Looks at everything once and publishes what came of it. Returns whether there are other folders to follow now:
    /// then it has to be done again.
    fn round(&mut self, mut has_changed: bool, publish: &watch::Sender<Arc<Mesh>>) -> bool {
        let unreadable_before = self.unreadable.take();
        match self.folder.scan(&mut self.store, Instant::now()) {
            Ok(changed) => {
                has_changed |= changed;
                self.was_listed = true;
            }
            Err(error) => self.unreadable = Some(error.to_string()),
        }
        has_changed |= self.unreadable != unreadable_before;
        let mut has_more = false;
        if has_changed {
            let before = std::mem::replace(&mut self.in_force, self.store.in_force());
            self.changes.extend(changes(before.objects, &self.in_force.objects));
            let netns_paths = self.in_force.objects.iter().filter_map(netns_path).collect();
            has_more = std::mem::replace(&mut self.netns_paths, netns_paths) != self.netns_paths;
        }
        has_changed |= self.look_at_netns();

        let is_good = self.unreadable.is_none() && self.in_force.readable;
        let read_at = if is_good { Some(std::time::Instant::now()) } else { self.source.read_at };
        self.source.read_at = read_at;
        self.source.is_partial = self.in_force.partial || !self.was_listed;
        self.source.files = self.in_force.files;
        self.source.objects = self.in_force.objects.len();
        self.source.ignored = self.in_force.ignored;
        let mesh = if has_changed { self.apply() } else { None };
        if let Some(mesh) = mesh {
            tracing::debug!(version = mesh.version, problems = mesh.problems.len(), "read manifests");
            publish.send_replace(mesh);
        } else {
            let mesh = self.index.refresh(self.source.clone());
            publish.send_if_modified(|current| {
                *current = mesh;
                false
            });
        }
        has_more
    }

    /// Returns whether anything changed.
    fn look_at_netns(&mut self) -> bool {
        let found = netns::find(&self.netns_paths);
        if found.unfinished.is_empty() {
            self.netns_unfinished_since = None;
        } else if !found.unfinished.is_subset(&self.netns.unfinished) {
            self.netns_unfinished_since = Some(Instant::now());
        }
        let has_changed = found.inodes != self.netns.inodes;
        self.netns = found;
        has_changed
    }

    fn apply(&mut self) -> Option<Arc<Mesh>> {
        let mut problems = self.in_force.problems.clone();
        let dir = self.folder.path();
        if let Some(error) = &self.unreadable {
            let message = format!("the folder cannot be read: {error}");
            problems.push(source_problem(Severity::Error, dir, message, Reason::SourceUnreadable.remedy()));
        }
        if let Some(error) = &self.unwatched {
            let message = format!("the folder cannot be watched: {error}; changes are seen late");
            let remedy = "Raise fs.inotify.max_user_instances and fs.inotify.max_user_watches.";
            problems.push(source_problem(Severity::Warning, dir, message, remedy));
        }
        if *self.problems != *problems {
            self.problems = problems.into();
        }
        if *self.inodes != self.netns.inodes {
            self.inodes = Arc::new(self.netns.inodes.clone());
        }
        let surroundings = Surroundings {
            problems: Arc::clone(&self.problems),
            netns: Arc::clone(&self.inodes),
            source: self.source.clone(),
        };
        self.index.apply(self.changes.drain(..), &surroundings)
    }

    /// Waits for something to look at; false if nobody listens any more.
    async fn wait(&mut self, publish: &watch::Sender<Arc<Mesh>>) -> bool {
        let deadline = Instant::now() + self.pause();
        loop {
            let has_news = tokio::select! {
                () = publish.closed() => return false,
                () = sleep_until(deadline) => return true,
                events = next(&mut self.files) => self.note(events),
                events = next(&mut self.surroundings) => self.concerns_us(&events),
            };
            if has_news {
                break;
            }
        }
        sleep(DEBOUNCE).await;
        let more = self.files.as_mut().map(Watch::pending).unwrap_or_default();
        self.note(more);
        // Whatever they say, everything is looked at now.
        self.surroundings.as_mut().map(Watch::pending);
        true
    }

    fn note(&mut self, events: Vec<Event>) -> bool {
        let now = Instant::now();
        let mut has_news = false;
        for event in events {
            has_news |= self.folder.note(event, now);
        }
        has_news
    }

    /// Whether the events of the surroundings are about the folder, a namespace, or a folder above one.
    fn concerns_us(&self, events: &[Event]) -> bool {
        let is_above = |path: &PathBuf| {
            self.folder.path().starts_with(path) || self.netns_paths.iter().any(|netns| netns.starts_with(path))
        };
        events.iter().any(|event| event.path.as_ref().is_none_or(is_above))
    }

    /// How long to wait for events at most.
    fn pause(&self) -> Duration {
        if self.netns_unfinished_since.is_some_and(|since| since.elapsed() < NETNS_PATIENCE) {
            NETNS_POLL
        } else if self.unreadable.is_some() || self.unwatched.is_some() {
            FAST_POLL.min(self.poll)
        } else {
            self.poll
        }
    }
}

async fn next(watch: &mut Option<Watch>) -> Vec<Event> {
    match watch {
        Some(watch) => watch.events().await,
        None => std::future::pending().await,
    }
}

/// What has become of the objects.
fn changes(before: Vec<Loaded>, now: &[Loaded]) -> Vec<Change> {
    let mut gone: BTreeMap<Key, Loaded> = before.into_iter().map(|loaded| (loaded.key.clone(), loaded)).collect();
    let is_new = |loaded: &&Loaded| gone.remove(&loaded.key).is_none_or(|before| before != **loaded);
    let mut changes: Vec<_> = now.iter().filter(is_new).cloned().map(Change::Put).collect();
    changes.extend(gone.into_keys().map(Change::Remove));
    changes
}

fn netns_path(loaded: &Loaded) -> Option<PathBuf> {
    match &*loaded.object {
        Object::Pod(pod) if !pod.finished => pod.settings.netns.as_ref().map(|netns| netns.path.clone()),
        _ => None,
    }
}

fn source_problem(severity: Severity, dir: &Path, message: String, remedy: &str) -> Problem {
    Problem {
        reason: Reason::SourceUnreadable,
        severity,
        location: Location { file: Some(Arc::new(dir.to_owned())), line: 0 },
        object: String::new(),
        field: String::new(),
        message,
        remedy: remedy.into(),
    }
}
