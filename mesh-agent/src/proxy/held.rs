//! Upstream connections that were made before their downstream was let in. Shared by the workers: the app's SYN may be
//! repeated on another CPU than the first one. Rare, so a lock will do.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
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
    /// An upstream connection is about to be made. False if nobody needs it any more.
    pub(super) fn begin(&self, key: Key) -> bool {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Entry::Passed(_)) = entries.remove(&key) {
            false
        } else {
            entries.insert(key, Entry::Connecting);
            true
        }
    }

    /// It is made, or has failed.
    pub(super) fn finish(&self, key: Key, result: Result<Early, Error>) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
            let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !entries.values().any(|entry| matches!(entry, Entry::Connecting | Entry::Wanted(_)))
    }

    /// Gives up what nobody came for.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, entry| match entry {
            Entry::Ready(_, since) | Entry::Passed(since) => now.duration_since(*since) < FORGET_AFTER,
            Entry::Connecting | Entry::Wanted(_) => true,
        });
    }
}
