//! Watches: a stream of changes, one JSON object per line, until the time is up, the log is gone or a fault cuts it.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::{
    Shared,
    body::Feed,
    entry::Entry,
    form::{self, Form},
    kinds::Kind,
    list::list_options,
    request::{Query, Target},
    selector::Selector,
    status::{Cause, Failure},
    store::{Change, TooOld},
};

/// A bookmark comes so long before the end of a watch with a timeout.
const BEFORE_END: Duration = Duration::from_millis(1800);

/// A watch that was asked for.
pub(super) struct Watch {
    kind: Arc<Kind>,
    namespace: Option<String>,
    selector: Selector,
    form: Form,
    bookmarks: bool,
    start: Start,
    ends: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// All there is, then changes. `marked`: a bookmark says where the one ends and the other begins.
    State { marked: bool },
    /// Changes after a version.
    After(u64),
}

/// The client is gone, or the stream has ended.
struct Over;

impl Watch {
    pub(super) fn parse(
        shared: &Shared,
        kind: Arc<Kind>,
        target: &Target,
        query: &Query,
        form: Form,
    ) -> Result<Self, Failure> {
        let version = query.number("resourceVersion")?;
        let bookmarks = query.is_true("allowWatchBookmarks");
        let initial = query.get("sendInitialEvents").map(|value| value == "true");
        let matching = query.get("resourceVersionMatch");
        let forbidden = |field: &str, what: &str| Err(list_options(Cause::forbidden(field, what)));
        let field = "resourceVersionMatch";
        let start = match (initial, matching) {
            (Some(_), Some("NotOlderThan")) if initial == Some(true) && !bookmarks => {
                return forbidden("allowWatchBookmarks", "sendInitialEvents requires allowWatchBookmarks");
            }
            (Some(true), Some("NotOlderThan")) => Start::State { marked: true },
            (Some(false), Some("NotOlderThan")) | (None, None) => match version {
                None | Some(0) if initial.is_none() => Start::State { marked: false },
                None | Some(0) => Start::After(shared.state().store.version()),
                Some(version) => Start::After(version),
            },
            (Some(_), _) => {
                return forbidden(field, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
            }
            (None, Some(_)) => {
                return forbidden(
                    field,
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                );
            }
        };
        let lasts =
            query.seconds("timeoutSeconds")?.filter(|time| !time.is_zero()).unwrap_or(shared.options.watch_timeout);
        Ok(Self {
            selector: Selector::parse(&kind, query)?,
            kind,
            namespace: target.namespace.clone(),
            form,
            bookmarks,
            start,
            ends: Instant::now() + lasts,
        })
    }

    /// The version that must be there before a watch that begins with the state answers.
    pub(super) fn not_older_than(&self, query: &Query) -> Result<Option<u64>, Failure> {
        match self.start {
            Start::State { .. } => query.number("resourceVersion"),
            Start::After(_) => Ok(None),
        }
    }

    /// Sends until it is over.
    pub(super) async fn run(self, shared: Arc<Shared>, feed: Feed) {
        let mut cut = shared.cuts.subscribe();
        tokio::select! {
            Err(Over) = self.send(&shared, &feed) => {}
            _ = cut.changed() => {
                let clean = *cut.borrow() == Cut::Clean;
                if !clean {
                    let _ = feed.send(Err(io::Error::other("cut off by a fault"))).await;
                }
            }
            () = feed.closed() => {}
            () = tokio::time::sleep_until(self.ends) => {}
        }
    }

    /// Never ends well: it is over, or it goes on.
    async fn send(&self, shared: &Shared, feed: &Feed) -> Result<std::convert::Infallible, Over> {
        let mut moved = shared.state().store.subscribe();
        let mut sent = self.beginning(shared, feed).await?;
        let mut cursor = sent;
        let mut tick = self.first_bookmark(shared);
        loop {
            moved.mark_unchanged();
            let (changes, version) = {
                let store = &shared.state().store;
                (store.since(&self.kind.collection, cursor), store.version())
            };
            let changes = match changes {
                Ok(changes) => changes,
                Err(TooOld(oldest)) => return self.expired(feed, cursor, oldest).await,
            };
            for change in &changes {
                if let Some(line) = self.line(change) {
                    put(feed, line).await?;
                    sent = change.version;
                }
            }
            cursor = cursor.max(version);
            tokio::select! {
                _ = moved.changed() => {}
                () = tokio::time::sleep_until(tick) => {
                    tick = self.next_bookmark(shared);
                    if self.bookmarks && version > sent {
                        put(feed, event("BOOKMARK", &[form::bookmark(&self.kind, version, false)])).await?;
                        sent = version;
                    }
                }
            }
        }
    }

    /// Sends what comes before changes; returns the version to go on from.
    async fn beginning(&self, shared: &Shared, feed: &Feed) -> Result<u64, Over> {
        let marked = match self.start {
            Start::After(version) => return Ok(version),
            Start::State { marked: true } if !shared.options.streams => {
                let why = "a watch stream was requested by the client but the required storage feature \
                           RequestWatchProgress is disabled";
                let status = Failure::new(500, "InternalError", why).body;
                put(feed, event("ERROR", &[status.to_string().into()])).await?;
                return Err(Over);
            }
            Start::State { marked } => marked,
        };
        let (entries, version) = {
            let store = &shared.state().store;
            let entries = store.objects(&self.kind.collection, self.namespace.as_deref(), None);
            let chosen: Vec<_> =
                entries.filter(|(_, entry)| self.selector.matches(entry)).map(|(_, entry)| Arc::clone(entry)).collect();
            (chosen, store.version())
        };
        // Many events in one piece: the client reads lines, whatever the pieces are.
        let mut piece = BytesMut::new();
        for entry in entries {
            piece.extend_from_slice(&event("ADDED", &form::object(&self.kind, &entry, self.form)));
            if piece.len() > 64 * 1024 {
                put(feed, piece.split().freeze()).await?;
            }
        }
        if marked {
            piece.extend_from_slice(&event("BOOKMARK", &[form::bookmark(&self.kind, version, true)]));
        }
        if !piece.is_empty() {
            put(feed, piece.freeze()).await?;
        }
        Ok(version)
    }

    fn first_bookmark(&self, shared: &Shared) -> Instant {
        let end = self.ends - BEFORE_END.min(self.ends - Instant::now());
        if end > Instant::now() { end.min(Instant::now() + shared.options.bookmarks) } else { self.ends }
    }

    fn next_bookmark(&self, shared: &Shared) -> Instant {
        self.first_bookmark(shared)
    }

    async fn expired(&self, feed: &Feed, version: u64, oldest: u64) -> Result<std::convert::Infallible, Over> {
        let status = Failure::expired(&format!("too old resource version: {version} ({oldest})")).body;
        put(feed, event("ERROR", &[status.to_string().into()])).await?;
        Err(Over)
    }

    /// What a change is to this watcher: whether an object is in view depends on its selector.
    fn line(&self, change: &Change) -> Option<Bytes> {
        if self.namespace.as_ref().is_some_and(|namespace| *namespace != change.key.namespace) {
            return None;
        }
        let seen = |entry: &Option<Arc<Entry>>| entry.clone().filter(|entry| self.selector.matches(entry));
        let whole = |entry: &Entry| form::object(&self.kind, entry, self.form);
        Some(match (seen(&change.before), seen(&change.after)) {
            (None, None) => return None,
            (None, Some(after)) => event("ADDED", &whole(&after)),
            (Some(_), Some(after)) => event("MODIFIED", &whole(&after)),
            (Some(before), None) => {
                let last = form::at_version(&self.kind, &before, change.version);
                event("DELETED", &if self.form == Form::Metadata { whole(&last) } else { vec![last.json] })
            }
        })
    }
}

/// How streams are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// As at the end of their time.
    Clean,
    /// In the middle, with the connection or the HTTP/2 stream broken.
    Broken,
}

async fn put(feed: &Feed, piece: Bytes) -> Result<(), Over> {
    feed.send(Ok(piece)).await.map_err(|_| Over)
}

fn event(kind: &str, object: &[Bytes]) -> Bytes {
    let mut line = BytesMut::from(format!(r#"{{"type":"{kind}","object":"#).as_bytes());
    for part in object {
        line.extend_from_slice(part);
    }
    line.extend_from_slice(b"}\n");
    line.freeze()
}
