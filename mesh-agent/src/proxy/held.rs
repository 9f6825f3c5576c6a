//! Upstream connections that were made before their downstream was let in. Shared by the workers: the app's SYN may be
//! repeated on another CPU than the first one. Rare, so a lock will do.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{Error, upstream::Early};

/// How long either side waits for the other before it is given up: an app that has gone away never comes.
const FORGET_AFTER: Duration = Duration::from_secs(5);

/// The workload's slot and the app's end.
pub(super) type Key = (u32, SocketAddr);

enum Entry {
    /// The upstream connection is on its way.
    Connecting,
    /// Its downstream is there first and waits for it.
    Wanted(oneshot::Sender<Result<Early, Error>>),
    /// It is there and waits for its downstream.
    Ready(Early, Instant),
    /// The downstream came before anybody knew that it was held, and went on by itself.
    Passed(Instant),
}

/// What waits.
#[derive(Default)]
pub struct Held(Mutex<HashMap<Key, Entry>>);

impl Held {
    /// An upstream connection is about to be made. `None` if nobody needs it any more.
    pub(super) fn begin(held: &Arc<Self>, key: Key) -> Option<Begun> {
        let mut entries = held.lock();
        if let Some(Entry::Passed(_)) = entries.remove(&key) {
            return None;
        }
        entries.insert(key, Entry::Connecting);
        drop(entries);
        Some(Begun { held: Arc::clone(held), key, is_finished: false })
    }

    fn finish(&self, key: Key, result: Result<Early, Error>) {
        let mut entries = self.lock();
        match (entries.remove(&key), result) {
            (Some(Entry::Wanted(downstream)), result) => {
                let _ = downstream.send(result);
            }
            (_, Ok(stream)) => {
                entries.insert(key, Entry::Ready(stream, Instant::now()));
            }
            (_, Err(_)) => {}
        }
    }

    /// The upstream connection of a downstream that has arrived. `None`: it has to make its own.
    pub(super) async fn claim(&self, key: Key) -> Option<Result<Early, Error>> {
        let wait = {
            let mut entries = self.lock();
            match entries.remove(&key) {
                Some(Entry::Ready(stream, _)) => return Some(Ok(stream)),
                Some(Entry::Connecting) => {
                    let (downstream, wait) = oneshot::channel();
                    entries.insert(key, Entry::Wanted(downstream));
                    wait
                }
                _ => {
                    entries.insert(key, Entry::Passed(Instant::now()));
                    return None;
                }
            }
        };
        wait.await.ok()
    }

    /// Whether no upstream connection is on its way.
    pub(super) fn is_idle(&self) -> bool {
        !self.lock().values().any(|entry| matches!(entry, Entry::Connecting | Entry::Wanted(_)))
    }

    /// Whether a connection of a pod is still to come in: it finds a listener as long as it does.
    pub fn concerns(&self, slot: u32) -> bool {
        let awaits = |entry: &Entry| !matches!(entry, Entry::Passed(_));
        self.lock().iter().any(|((of, _), entry)| *of == slot && awaits(entry))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up what nobody came for.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.lock().retain(|_, entry| match entry {
            Entry::Ready(_, since) | Entry::Passed(since) => now.duration_since(*since) < FORGET_AFTER,
            Entry::Connecting | Entry::Wanted(_) => true,
        });
    }
}

/// An upstream connection on its way. Given up when dropped: its pod has gone.
pub(super) struct Begun {
    held: Arc<Held>,
    key: Key,
    is_finished: bool,
}

impl Begun {
    /// It is made, or has failed.
    pub(super) fn finish(mut self, result: Result<Early, Error>) {
        self.is_finished = true;
        self.held.finish(self.key, result);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.is_finished {
            self.held.lock().remove(&self.key);
        }
    }
}
