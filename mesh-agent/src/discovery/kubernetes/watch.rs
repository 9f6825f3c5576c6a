//! One watch of one kind, kept up for ever: a list to begin with, then changes, from where it was when it breaks.
//!
//! By hand and not by kube's `watcher`: that one does not tell when a list that was broken off begins anew, so that what
//! vanished between the two would stay.

use std::{sync::Arc, time::Duration};

use kube::Client;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{
    Timing,
    backoff::{Backoff, dice},
    failure::{Failure, Refusal},
    request::{Lines, whole},
    resource::{Resource, encoded},
    store::{Arrived, Version},
    trim::{self, Keep},
};
use crate::{
    discovery::{
        field::Field,
        object::Kind,
        parse,
        yaml::{Node, Value},
    },
    kubernetes::Access,
    model::ObjectName,
};

/// Objects of a page, where lists come in pages.
const PAGE: u32 = 500;
/// A watch that has lasted so long has worked: when it ends, it is opened again at once.
const SETTLED: Duration = Duration::from_secs(5);
/// At once: within this.
const AT_ONCE: Duration = Duration::from_millis(50);
/// Failures in a row that are told, if they may pass.
const TOLD_FROM: u32 = 2;
/// Marks the bookmark after which come changes.
const END_OF_LIST: &str = "k8s.io/initial-events-end";

const RESOURCES: Keep = Keep::Fields(&[("resources", Keep::Each(&Keep::Fields(&[("name", Keep::All)])))]);
const GROUPS: Keep = Keep::Fields(&[("groups", Keep::Each(&Keep::Fields(&[("name", Keep::All)])))]);

/// What a watch has to tell.
#[derive(Debug)]
pub(super) enum Event {
    /// A list begins: what is not in it is no more.
    Listing,
    Put(Arrived),
    Delete(ObjectName),
    /// The list is complete.
    Synced,
    /// There is no such kind on the server.
    Absent,
    /// From now on it is known what changes.
    Following,
    /// Until now it was.
    Lost,
    /// It cannot be followed.
    Broken(Failure),
}

/// A watch.
pub(super) struct Watch {
    resource: Resource,
    access: Arc<Access>,
    client: Client,
    timing: Timing,
    tell: mpsc::Sender<(Kind, Event)>,
    /// Which of the resource's groups is served.
    group: usize,
    /// Up to where everything is known.
    version: Option<String>,
    /// A list in pages took too long: it is asked for as a whole.
    whole: bool,
    /// In this attempt it was followed.
    is_established: bool,
}

impl Watch {
    pub(super) fn new(
        resource: Resource,
        access: Arc<Access>,
        client: Client,
        timing: Timing,
        tell: mpsc::Sender<(Kind, Event)>,
    ) -> Self {
        let (version, whole, is_established) = (None, false, false);
        Self { resource, access, client, timing, tell, group: 0, version, whole, is_established }
    }

    /// Until nobody listens.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(self.timing.first_retry, self.timing.most_retry);
        let mut failures = 0;
        while !self.tell.is_closed() {
            let begun = Instant::now();
            self.is_established = false;
            let failure = self.attempt().await.err();
            let has_worked = self.is_established && begun.elapsed() >= SETTLED;
            if self.is_established {
                self.tell(Event::Lost).await;
                failures = 0;
            }
            if has_worked {
                backoff.reset();
            }
            let Some(failure) = failure else {
                sleep(if has_worked { AT_ONCE.mul_f64(dice()) } else { backoff.pause(dice()) }).await;
                continue;
            };
            tracing::debug!(kind = self.resource.plural(), %failure, "a watch ended");
            if failure.is_expired() {
                self.version = None;
            }
            if failure.is_not_found() && self.resource.is_optional() && self.is_absent().await {
                self.version = None;
                failures = 0;
                backoff.reset();
                self.tell(Event::Absent).await;
                sleep(self.timing.absent.mul_f64(0.75 + dice() / 2.0)).await;
                continue;
            }
            if !self.is_established {
                failures += 1;
            }
            if failures >= TOLD_FROM || failure.is_lasting() {
                self.tell(Event::Broken(failure.clone())).await;
            }
            if failure.calls_for_another_client()
                && let Ok(client) = self.access.watcher().await
            {
                self.client = client;
            }
            let asked = Duration::from_secs(failure.retry_after().unwrap_or_default()).min(self.timing.most_retry);
            sleep(backoff.pause(dice()).max(asked.mul_f64(1.0 + dice() / 2.0))).await;
        }
    }

    /// From a list, or from where it was, to the end.
    async fn attempt(&mut self) -> Result<(), Failure> {
        if self.version.is_none() {
            let query = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
            match self.open(query).await {
                Ok(lines) => {
                    self.tell(Event::Listing).await;
                    match self.follow(lines, true).await {
                        Err(failure) if !self.is_established && failure.breaks_a_stream() => {
                            tracing::debug!(kind = self.resource.plural(), %failure, "no stream: a list in pages");
                        }
                        ended => return ended,
                    }
                }
                Err(failure) if failure.is_of_streaming() => {}
                Err(failure) => return Err(failure),
            }
            self.version = Some(self.list().await?);
        }
        let version = self.version.as_deref().map(encoded).unwrap_or_default();
        let lines = self.open(&format!("&resourceVersion={version}")).await?;
        self.is_established = true;
        self.tell(Event::Following).await;
        self.follow(lines, false).await
    }

    async fn open(&self, query: &str) -> Result<Lines, Failure> {
        let Resource { selector, .. } = &self.resource;
        // Not all at the same time.
        let seconds = self.timing.watch.mul_f64(1.0 + dice()).as_secs().max(1);
        let path = self.resource.path(self.group);
        let path = format!("{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}{query}{selector}");
        Lines::open(&self.client, &path).await
    }

    async fn follow(&mut self, mut lines: Lines, mut is_list: bool) -> Result<(), Failure> {
        loop {
            let patience = (!is_list).then_some(self.timing.silence);
            let Some(line) = lines.next(patience).await? else {
                return if is_list { Err(Failure::Unreachable("the list was cut off".into())) } else { Ok(()) };
            };
            let mut event = read(&line, self.resource.keep_event)?;
            let object = take(&mut event, "object");
            let kind = Field::root(&event);
            let kind = kind.get("type").text().ok().flatten().unwrap_or_default().to_owned();
            let Some(object) = object else { return Err(Failure::Malformed(format!("{kind} of nothing"))) };
            let version = version(&object);
            match &*kind {
                "ADDED" | "MODIFIED" => self.put(object).await,
                "DELETED" => match parse::served_name(self.resource.kind, &object) {
                    Ok(name) => self.tell(Event::Delete(name)).await,
                    Err(error) => self.nameless(&error.message),
                },
                "BOOKMARK" if is_list && marks_end(&object) => {
                    is_list = false;
                    self.is_established = true;
                    self.tell(Event::Synced).await;
                }
                "ERROR" => return Err(Failure::Refused(Refusal::read(0, &object))),
                // Other kinds of events than there are today.
                _ => {}
            }
            // A list that was not told to its end is none.
            if !is_list && version.is_some() {
                self.version = version;
            }
        }
    }

    /// By pages; returns the version of the list.
    async fn list(&mut self) -> Result<String, Failure> {
        let limit = if self.whole { 0 } else { PAGE };
        let mut token = String::new();
        loop {
            let Resource { selector, .. } = &self.resource;
            let path = format!("{}?limit={limit}{token}{selector}", self.resource.path(self.group));
            let mut page = match whole(&self.client, &path, self.resource.keep_page).await {
                Err(failure) if failure.is_expired() => {
                    self.whole = true;
                    return Err(failure);
                }
                page => page?,
            };
            if token.is_empty() {
                self.tell(Event::Listing).await;
            }
            if let Some(Node { value: Value::Sequence(items), .. }) = take(&mut page, "items") {
                for item in items {
                    self.put(item).await;
                }
            }
            let root = Field::root(&page);
            let metadata = root.get("metadata");
            let text = |key| metadata.get(key).text().ok().flatten().filter(|text| !text.is_empty()).map(str::to_owned);
            match (text("continue"), text("resourceVersion")) {
                (Some(next), _) => token = format!("&continue={}", encoded(&next)),
                (None, Some(version)) => {
                    self.whole = false;
                    self.tell(Event::Synced).await;
                    return Ok(version);
                }
                (None, None) => return Err(Failure::Malformed("a list without a version".into())),
            }
        }
    }

    async fn put(&self, mut object: Node) {
        if let Some(metadata) = get_mut(&mut object, "metadata") {
            // It rises with what is not kept, too.
            take(metadata, "resourceVersion");
        }
        match parse::served(self.resource.kind, &object) {
            Ok(served) => {
                let version = Version::of(uid(&object).as_deref(), &object);
                self.tell(Event::Put(Arrived::new(served, version))).await;
            }
            Err(error) => self.nameless(&error.message),
        }
    }

    fn nameless(&self, error: &str) {
        tracing::warn!(kind = self.resource.plural(), error, "an object whose name cannot be read");
    }

    /// Whether the server has no such kind, in any of the versions that are read. Found where it is served, or not found
    /// because something else answers in place of the server, it is not absent.
    async fn is_absent(&mut self) -> bool {
        for (at, path) in self.resource.groups.iter().enumerate() {
            match whole(&self.client, path, RESOURCES).await {
                Ok(resources) if has(&resources, "resources", self.resource.plural()) => {
                    self.group = at;
                    return false;
                }
                Ok(_) => {}
                Err(failure) if failure.is_not_found() => {}
                Err(_) => return false,
            }
        }
        // A group that every server has.
        whole(&self.client, "/apis", GROUPS).await.is_ok_and(|groups| has(&groups, "groups", "discovery.k8s.io"))
    }

    async fn tell(&self, event: Event) {
        // Nobody listens any more: the loop will end.
        let _ = self.tell.send((self.resource.kind, event)).await;
    }
}

fn read(text: &[u8], keep: Keep) -> Result<Node, Failure> {
    trim::read(text, keep).map_err(|error| Failure::Malformed(error.to_string()))
}

/// Takes a field out of a mapping.
fn take(node: &mut Node, key: &str) -> Option<Node> {
    let Value::Mapping(entries) = &mut node.value else { return None };
    let at = entries.iter().position(|entry| &*entry.key == key)?;
    Some(entries.swap_remove(at).node)
}

fn get_mut<'a>(node: &'a mut Node, key: &str) -> Option<&'a mut Node> {
    let Value::Mapping(entries) = &mut node.value else { return None };
    entries.iter_mut().find(|entry| &*entry.key == key).map(|entry| &mut entry.node)
}

pub(super) fn version(object: &Node) -> Option<String> {
    let root = Field::root(object);
    let metadata = root.get("metadata");
    metadata.get("resourceVersion").text().ok().flatten().filter(|version| !version.is_empty()).map(str::to_owned)
}

fn uid(object: &Node) -> Option<Box<str>> {
    let root = Field::root(object);
    let metadata = root.get("metadata");
    metadata.get("uid").text().ok().flatten().map(Into::into)
}

fn marks_end(bookmark: &Node) -> bool {
    let root = Field::root(bookmark);
    let metadata = root.get("metadata");
    let annotations = metadata.get("annotations");
    annotations.get(END_OF_LIST).text() == Ok(Some("true"))
}

/// Whether a list has an item of this name.
fn has(document: &Node, list: &str, name: &str) -> bool {
    let root = Field::root(document);
    let list = root.get(list);
    list.items().is_ok_and(|mut items| items.any(|item| item.get("name").text() == Ok(Some(name))))
}
