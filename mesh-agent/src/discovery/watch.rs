//! inotify as a stream of events, for folders that may come, go and be replaced.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tokio::io::unix::AsyncFd;

use crate::sys::{self, Readable};

/// Something happened in a folder, or to it.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// The folder, and the entry in it if it is about one; `None` if events were lost.
    pub(super) path: Option<PathBuf>,
    /// What.
    pub(super) what: AddWatchFlags,
}

/// A set of watched folders.
pub(super) struct Watch {
    inotify: AsyncFd<Readable<Inotify>>,
    what: AddWatchFlags,
    folders: BTreeMap<WatchDescriptor, PathBuf>,
}

impl Watch {
    /// Watches nothing yet. `what` is asked of every folder.
    pub(super) fn new(what: AddWatchFlags) -> std::io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let inotify = sys::async_fd(Readable(inotify))?;
        Ok(Self { inotify, what, folders: BTreeMap::new() })
    }

    /// Watches exactly these folders, as far as they exist. To be called again and again: a folder that was replaced
    /// by another of the same name is noticed only so. Returns whether any folder came, went or was replaced.
    ///
    /// # Errors
    /// The kernel refuses another watch (`fs.inotify.max_user_watches`), or a folder may not be read.
    pub(super) fn follow(&mut self, folders: &BTreeSet<PathBuf>) -> Result<bool, Errno> {
        let mut result = Ok(());
        let mut current = BTreeMap::new();
        for folder in folders {
            // Idempotent: a folder that is watched already keeps its descriptor.
            match self.inotify.get_ref().0.add_watch(folder, self.what | AddWatchFlags::IN_ONLYDIR) {
                Ok(descriptor) => {
                    current.insert(descriptor, folder.clone());
                }
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => result = Err(error),
            }
        }
        for stale in self.folders.keys().filter(|descriptor| !current.contains_key(*descriptor)) {
            // Fails if the folder is gone, and the watch with it.
            let _ = self.inotify.get_ref().0.rm_watch(*stale);
        }
        let has_changed = self.folders != current;
        self.folders = current;
        result.map(|()| has_changed)
    }

    /// Waits for events; cancel-safe.
    pub(super) async fn events(&mut self) -> Vec<Event> {
        loop {
            // Only fails when the runtime shuts down.
            let Ok(mut ready) = self.inotify.readable().await else { return std::future::pending().await };
            match ready.try_io(|inotify| Ok(inotify.get_ref().0.read_events()?)) {
                Ok(Ok(events)) => return translate(&self.folders, events),
                Ok(Err(_)) => return vec![Event { path: None, what: AddWatchFlags::IN_Q_OVERFLOW }],
                Err(_would_block) => {}
            }
        }
    }

    /// The events that are there already.
    pub(super) fn pending(&mut self) -> Vec<Event> {
        let mut all = Vec::new();
        while let Ok(events) = self.inotify.get_ref().0.read_events() {
            all.extend(translate(&self.folders, events));
        }
        all
    }
}

/// Events of folders that are no longer watched are left out.
fn translate(folders: &BTreeMap<WatchDescriptor, PathBuf>, events: Vec<InotifyEvent>) -> Vec<Event> {
    let translated = events.into_iter().filter_map(|event| {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return Some(Event { path: None, what: event.mask });
        }
        let folder = folders.get(&event.wd)?;
        let path = event.name.map_or_else(|| folder.clone(), |name| folder.join(name));
        Some(Event { path: Some(path), what: event.mask })
    });
    translated.collect()
}
