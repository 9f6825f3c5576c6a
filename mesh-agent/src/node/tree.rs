//! The cgroup tree as far as it leads to pods, and what changes in it.
//!
//! Every folder is watched before it is listed, so nothing falls between; what is seen twice is told once.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tokio::io::unix::AsyncFd;

use super::{
    Error,
    names::{Role, role},
};
use crate::{
    model::PodUid,
    sys::{self, Readable},
};

const FOLDER: AddWatchFlags = AddWatchFlags::IN_CREATE.union(AddWatchFlags::IN_DELETE).union(AddWatchFlags::IN_ONLYDIR);

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A cgroup that is a pod's or a container's has come.
    Came(PathBuf, Role),
    /// It has gone.
    Went(PathBuf, Role),
    /// The first process has come into a container, or the last has gone.
    Stirred(PathBuf, PodUid),
}

/// The watched part of the tree.
pub(super) struct Tree {
    root: PathBuf,
    inotify: AsyncFd<Readable<Inotify>>,
    /// What a watch is about: a folder, or the container whose `cgroup.events` it is.
    watched: HashMap<WatchDescriptor, Watched>,
    known: BTreeMap<PathBuf, Known>,
    changes: VecDeque<Change>,
    /// Why something is not watched, if so: then the tree has to be looked at again and again.
    unwatched: Option<Errno>,
}

#[derive(Clone, Debug)]
enum Watched {
    Folder(PathBuf),
    Events(PathBuf, PodUid),
}

#[derive(Debug)]
struct Known {
    role: Role,
    inode: u64,
    watches: Vec<WatchDescriptor>,
}

impl Tree {
    /// The tree below `root`, all of which is told as having come. Must be called within a tokio runtime.
    pub(super) fn new(root: &Path) -> Result<Self, Error> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(io::Error::from)
            .and_then(|inotify| sys::async_fd(Readable(inotify)))
            .map_err(Error::Inotify)?;
        // Later it may come and go; at first it has to be there.
        root.read_dir().map_err(|source| Error::Tree { path: root.to_owned(), source })?;
        let mut tree = Self {
            root: root.to_owned(),
            inotify,
            watched: HashMap::new(),
            known: BTreeMap::new(),
            changes: VecDeque::new(),
            unwatched: None,
        };
        tree.rescan();
        Ok(tree)
    }

    /// Why part of the tree is not watched, if so: [`Self::rescan`] has to be called now and then.
    pub(super) fn unwatched(&self) -> Option<Errno> {
        self.unwatched
    }

    /// The inode of a folder that is known; in this file system it is the cgroup's id.
    pub(super) fn inode(&self, path: &Path) -> Option<u64> {
        self.known.get(path).map(|known| known.inode)
    }

    /// The changes that have been seen.
    pub(super) fn changes(&mut self) -> VecDeque<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Waits until there are changes, or lost ones have been looked for; cancel-safe.
    pub(super) async fn wait(&mut self) {
        while self.changes.is_empty() {
            // Only fails when the runtime shuts down.
            let Ok(mut ready) = self.inotify.readable().await else { return std::future::pending().await };
            let read = ready.try_io(|inotify| Ok(inotify.get_ref().0.read_events()?));
            drop(ready);
            match read {
                Ok(Ok(events)) => events.into_iter().for_each(|event| self.note(event)),
                Ok(Err(_)) => self.rescan(),
                Err(_would_block) => {}
            }
        }
    }

    /// Looks at everything.
    pub(super) fn rescan(&mut self) {
        self.unwatched = None;
        let gone: Vec<PathBuf> = self
            .known
            .iter()
            .filter(|(path, known)| inode(path) != Some(known.inode))
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            self.forget(&path);
        }
        let root = self.root.clone();
        self.enter(&root);
        let folders: Vec<PathBuf> = self.known.keys().cloned().collect();
        for folder in folders {
            self.list(&folder);
        }
    }

    fn note(&mut self, event: InotifyEvent) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            tracing::warn!("events of the cgroup tree were lost; looking at all of it");
            return self.rescan();
        }
        match self.watched.get(&event.wd).cloned() {
            Some(Watched::Events(container, pod)) if event.mask.contains(AddWatchFlags::IN_MODIFY) => {
                self.changes.push_back(Change::Stirred(container, pod));
            }
            Some(Watched::Folder(folder)) => {
                let Some(path) = event.name.map(|name| folder.join(name)) else { return };
                if event.mask.contains(AddWatchFlags::IN_DELETE) {
                    self.forget(&path);
                } else if event.mask.contains(AddWatchFlags::IN_CREATE) {
                    self.enter(&path);
                }
            }
            _ => {}
        }
    }

    /// Watches a folder, then lists it; unless it is known, or nothing of interest.
    fn enter(&mut self, path: &Path) {
        let Some(inode) = inode(path) else { return };
        match self.known.get(path) {
            Some(known) if known.inode == inode => return,
            // Another one of the same name, before the end of the former has been told.
            Some(_) => self.forget(path),
            None => {}
        }
        let Some(role) = self.role(path) else { return };
        let mut watches = Vec::new();
        let (what, flags, watched) = match role {
            Role::Other => return,
            Role::Way | Role::Pod(_) => (path.to_owned(), FOLDER, Watched::Folder(path.to_owned())),
            Role::Container(ref pod) => {
                let watched = Watched::Events(path.to_owned(), pod.clone());
                (path.join("cgroup.events"), AddWatchFlags::IN_MODIFY, watched)
            }
        };
        match self.inotify.get_ref().0.add_watch(&what, flags) {
            Ok(descriptor) => {
                self.watched.insert(descriptor, watched);
                watches.push(descriptor);
            }
            // Gone again.
            Err(Errno::ENOENT | Errno::ENOTDIR) => return,
            Err(error) => {
                if self.unwatched.replace(error).is_none() {
                    tracing::warn!(path = %what.display(), %error, "cannot be watched; raise fs.inotify.max_user_watches");
                }
            }
        }
        if !matches!(role, Role::Way) {
            self.changes.push_back(Change::Came(path.to_owned(), role.clone()));
        }
        let is_listed = !matches!(role, Role::Container(_));
        self.known.insert(path.to_owned(), Known { role, inode, watches });
        if is_listed {
            self.list(path);
        }
    }

    fn list(&mut self, folder: &Path) {
        if self.known.get(folder).is_none_or(|known| matches!(known.role, Role::Container(_))) {
            return;
        }
        let Ok(entries) = folder.read_dir() else { return };
        let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut folders: Vec<(u64, PathBuf)> = folders.map(|entry| (entry_inode(&entry), entry.path())).collect();
        // In the order in which they were made: a pod's sandbox before its containers.
        folders.sort();
        for (_, path) in folders {
            self.enter(&path);
        }
    }

    /// Forgets a folder and what is below it.
    fn forget(&mut self, path: &Path) {
        let gone: Vec<PathBuf> = self
            .known
            .range(path.to_owned()..)
            .map(|(path, _)| path)
            .take_while(|p| p.starts_with(path))
            .cloned()
            .collect();
        for path in gone.into_iter().rev() {
            let Some(known) = self.known.remove(&path) else { continue };
            for descriptor in known.watches {
                self.watched.remove(&descriptor);
                // Fails if the folder is gone, and the watch with it.
                let _ = self.inotify.get_ref().0.rm_watch(descriptor);
            }
            if !matches!(known.role, Role::Way) {
                self.changes.push_back(Change::Went(path, known.role));
            }
        }
    }

    fn role(&self, path: &Path) -> Option<Role> {
        let below = path.strip_prefix(&self.root).ok()?;
        let names: Option<Vec<&str>> = below.iter().map(|name| name.to_str()).collect();
        Some(role(&names?))
    }
}

fn inode(path: &Path) -> Option<u64> {
    Some(path.symlink_metadata().ok().filter(std::fs::Metadata::is_dir)?.ino())
}

fn entry_inode(entry: &std::fs::DirEntry) -> u64 {
    use std::os::unix::fs::DirEntryExt;
    entry.ino()
}

#[cfg(test)]
mod tests;
