//! Writes what has changed: merge patches one after another, retried later where the server would not have them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{ObjectReference, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;
use tokio::{sync::watch, time};

use super::{Change, Held, Report, STATUS, bucket::Bucket, changes, is_object_uid, news};
use crate::model::{ObjectName, Reason};

/// Writes at once, and then one so often: what a node's pods are worth when all of them change.
const WRITES: u32 = 50;
const WRITE_EVERY: Duration = Duration::from_millis(50);
/// Events at once, and then one so often, of all pods together.
const EVENTS: u32 = 10;
const EVENT_EVERY: Duration = Duration::from_secs(10);
/// How long a problem of a pod that comes and goes is not told again. Longer than the recorder remembers its Events: it
/// would patch them, which the agent may not.
const RETELL: Duration = Duration::from_mins(10);
/// Pause after a failure, and the longest one.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(2);
/// How long the server may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Pods that are asked for at once.
const PAGE: u32 = 500;
/// What has been told about is looked at so often, if nothing else happens.
const TURN: Duration = Duration::from_mins(1);

/// Where the control loop puts what it knows.
#[derive(Debug)]
pub struct Feed(watch::Sender<Arc<Vec<Report>>>);

impl Feed {
    /// What is known now, of all pods of the node. Nothing happens where it is the same as before.
    pub fn tell(&self, reports: Vec<Report>) {
        self.0.send_if_modified(|known| {
            let differs = **known != reports;
            if differs {
                *known = Arc::new(reports);
            }
            differs
        });
    }
}

/// What is told, and who does the telling, as a future that never ends.
pub fn start(client: Client, node: String) -> (Feed, impl Future<Output = ()> + Send) {
    let (feed, reports) = watch::channel(Arc::new(Vec::new()));
    let reporter = Reporter { controller: "mesh-agent.io/agent".to_owned(), instance: Some(node.clone()) };
    let now = Instant::now();
    let actor = Actor {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        node,
        held: BTreeMap::new(),
        told: BTreeMap::new(),
        writes: Bucket::new(WRITES, WRITE_EVERY, now),
        events: Bucket::new(EVENTS, EVENT_EVERY, now),
    };
    (Feed(feed), actor.run(reports))
}

struct Actor {
    client: Client,
    recorder: Recorder,
    node: String,
    held: BTreeMap<ObjectName, Held>,
    /// Problems that Events were made of, and when.
    told: BTreeMap<(ObjectName, Reason), Instant>,
    writes: Bucket,
    events: Bucket,
}

impl Actor {
    async fn run(mut self, mut reports: watch::Receiver<Arc<Vec<Report>>>) {
        // An earlier agent has written, too: what it said is not said again, and removed where it is not so any more.
        let mut pause = PAUSE;
        while let Err(error) = self.learn().await {
            failed("the pods' annotations cannot be read", &error);
            time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        pause = PAUSE;
        loop {
            let now = Arc::clone(&reports.borrow_and_update());
            let again = if self.write(&now).await {
                pause = PAUSE;
                TURN
            } else {
                let wait = jittered(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
                wait
            };
            tokio::select! {
                changed = reports.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                () = time::sleep(again) => {}
            }
        }
    }

    /// The one list: the annotations of this node's pods.
    async fn learn(&mut self) -> Result<(), kube::Error> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let mut params = ListParams::default().fields(&format!("spec.nodeName={}", self.node)).limit(PAGE);
        loop {
            let page = limited(pods.list_metadata(&params)).await?;
            for pod in page.items {
                let PartialObjectMeta { metadata, .. } = pod;
                let (Some(namespace), Some(name)) = (metadata.namespace, metadata.name) else { continue };
                let annotation = metadata.annotations.and_then(|mut annotations| annotations.remove(STATUS));
                self.held.insert(ObjectName::new(&namespace, &name), Held { uid: metadata.uid, annotation });
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(()),
            }
        }
    }

    /// Writes what differs; whether nothing is left to be written.
    async fn write(&mut self, reports: &[Report]) -> bool {
        let names: BTreeSet<&ObjectName> = reports.iter().map(|report| &report.name).collect();
        self.held.retain(|name, _| names.contains(name));
        let mut is_done = true;
        for change in changes(reports, &self.held, &Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()) {
            while !self.writes.take(Instant::now()) {
                time::sleep(WRITE_EVERY).await;
            }
            match self.patch(&change).await {
                Ok(()) => self.now_held(change),
                // It is gone, or another one of that name is there: that one will be reported by itself.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => self.now_held(change),
                Err(error) => {
                    failed("a pod's annotation cannot be written", &error);
                    is_done = false;
                    // If the server does not answer at all, it will not for the others either.
                    if !matches!(error, kube::Error::Api(_)) {
                        break;
                    }
                }
            }
        }
        self.tell(reports).await;
        is_done
    }

    fn now_held(&mut self, change: Change) {
        let uid = change.uid.map(|uid| uid.as_str().to_owned());
        self.held.insert(change.name, Held { uid, annotation: change.annotation });
    }

    async fn patch(&self, change: &Change) -> Result<(), kube::Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &change.name.namespace);
        let mut metadata = json!({ "annotations": { STATUS: change.annotation } });
        // The server refuses with 409 if it is another one by now.
        if let (Some(uid), Some(fields)) =
            (change.uid.as_ref().filter(|uid| is_object_uid(uid)), metadata.as_object_mut())
        {
            fields.insert("uid".to_owned(), uid.as_str().into());
        }
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        limited(pods.patch_metadata(&change.name.name, &PatchParams::default(), &patch)).await?;
        tracing::debug!(pod = %change.name, annotation = change.annotation.as_deref(), "told the API server");
        Ok(())
    }

    async fn tell(&mut self, reports: &[Report]) {
        let now = Instant::now();
        self.told.retain(|_, at| now.saturating_duration_since(*at) < RETELL);
        let told: BTreeSet<_> = self.told.keys().cloned().collect();
        let was_told = |name: &ObjectName, reason| told.contains(&(name.clone(), reason));
        for (report, reason, message) in news(reports, &was_told) {
            if !self.events.take(now) {
                tracing::debug!(pod = %report.name, reason = reason.code(), "no Event: there were too many");
                return;
            }
            let event = Event {
                type_: EventType::Warning,
                reason: pascal_case(reason.code()),
                note: Some(format!("{message} ({}: {})", reason.code(), reason.remedy()).chars().take(1000).collect()),
                action: "Capture".to_owned(),
                secondary: None,
            };
            match limited(self.recorder.publish(&event, &reference(report))).await {
                Ok(()) => {}
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => failed("an Event cannot be written", &error),
            }
            // Told or not: it is in the status and in the log; Events are not worth a retry.
            self.told.insert((report.name.clone(), reason), now);
        }
    }
}

/// `host_network` as Events write it: `HostNetwork`.
fn pascal_case(code: &str) -> String {
    let words = code.split('_').map(|word| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    });
    words.collect()
}

fn reference(report: &Report) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(report.name.namespace.to_string()),
        name: Some(report.name.name.to_string()),
        uid: report.uid.as_ref().filter(|uid| is_object_uid(uid)).map(|uid| uid.as_str().to_owned()),
        ..ObjectReference::default()
    }
}

async fn limited<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    let late = |_| kube::Error::Service("the API server did not answer in time".into());
    time::timeout(TIMEOUT, request).await.map_err(late)?
}

fn failed(what: &str, error: &kube::Error) {
    tracing::warn!(reason = Reason::StatusNotWritten.code(), %error, "{what}; it is tried again");
}

/// Half of it to all of it: not all nodes at once.
fn jittered(pause: Duration) -> Duration {
    let random = u64::from(Timestamp::now().subsec_nanosecond().unsigned_abs()) % 1000;
    pause.mul_f64(0.5 + random as f64 / 2000.0)
}
