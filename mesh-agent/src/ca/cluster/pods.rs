//! Which service accounts have pods on which nodes, from a watch of all pods. Of a pod only that is kept.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource,
    core::NamespaceResourceScope,
    runtime::{
        WatchStreamExt,
        watcher::{Config, Event, watcher},
    },
};
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    ca::server::{Looking, PodDirectory},
    identity::Refusal,
    model::{Identity, Reason},
};

/// How long a pod is waited for: a node may hear of it a little sooner than the authority.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pods per page of a list.
const PAGE: u32 = 500;

/// A pod, as far as it is read.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Pod {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    service_account_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Status {
    phase: Option<String>,
}

impl Resource for Pod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Namespace and name of a service account.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Account {
    namespace: Arc<str>,
    name: Arc<str>,
}

/// Where a pod runs, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    account: Arc<Account>,
    node: Arc<str>,
}

/// What runs, by what it is asked for.
#[derive(Debug, Default)]
struct Running {
    /// By UID: a name can be that of another pod a moment later.
    pods: HashMap<Box<str>, Place>,
    /// Pods by account and node.
    accounts: HashMap<Arc<Account>, HashMap<Arc<str>, u32>>,
    /// Each name of a node once.
    nodes: HashSet<Arc<str>>,
    /// The pods of a list under way.
    listed: Option<HashSet<Box<str>>>,
    is_synced: bool,
}

impl Running {
    fn apply(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed = Some(HashSet::new()),
            Event::InitApply(pod) => {
                if let (Some(listed), Some(uid)) = (&mut self.listed, pod.metadata.uid.as_deref()) {
                    listed.insert(uid.into());
                }
                self.put(&pod);
            }
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<_> = self.pods.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                for uid in gone {
                    self.remove(&uid);
                }
                self.nodes.retain(|node| Arc::strong_count(node) > 1);
                self.is_synced = true;
            }
            Event::Apply(pod) => self.put(&pod),
            Event::Delete(pod) => self.remove(pod.metadata.uid.as_deref().unwrap_or_default()),
        }
    }

    fn put(&mut self, pod: &Pod) {
        let Some(uid) = pod.metadata.uid.as_deref() else { return };
        let is_over = matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let node = pod.spec.node_name.as_deref().filter(|node| !node.is_empty() && !is_over);
        let Some(node) = node else { return self.remove(uid) };
        let place = self.place(pod, node);
        if self.pods.get(uid) != Some(&place) {
            self.remove(uid);
            let nodes = self.accounts.entry(Arc::clone(&place.account)).or_default();
            *nodes.entry(Arc::clone(&place.node)).or_default() += 1;
            self.pods.insert(uid.into(), place);
        }
    }

    fn place(&mut self, pod: &Pod, node: &str) -> Place {
        let account = Account {
            namespace: pod.metadata.namespace.as_deref().unwrap_or_default().into(),
            name: pod.spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default").into(),
        };
        let account = match self.accounts.get_key_value(&account) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::new(account),
        };
        let node = self.nodes.get(node).cloned().unwrap_or_else(|| {
            let node: Arc<str> = node.into();
            self.nodes.insert(Arc::clone(&node));
            node
        });
        Place { account, node }
    }

    fn remove(&mut self, uid: &str) {
        let Some(Place { account, node }) = self.pods.remove(uid) else { return };
        let Some(nodes) = self.accounts.get_mut(&account) else { return };
        if let Some(count) = nodes.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                nodes.remove(&node);
            }
        }
        if nodes.is_empty() {
            self.accounts.remove(&account);
        }
    }

    fn runs(&self, node: Option<&str>, account: &Account) -> bool {
        self.accounts.get(account).is_some_and(|nodes| node.is_none_or(|node| nodes.contains_key(node)))
    }
}

/// All pods of the cluster.
pub struct Pods {
    trust_domain: Arc<str>,
    running: Mutex<Running>,
    /// Changes when they do.
    changes: watch::Sender<u64>,
}

impl Pods {
    pub(super) fn new(trust_domain: &str) -> Self {
        Self { trust_domain: trust_domain.into(), running: Mutex::default(), changes: watch::Sender::new(0) }
    }

    /// How many are known; none before all are.
    pub fn known(&self) -> Option<usize> {
        let running = self.running();
        running.is_synced.then(|| running.pods.len())
    }

    /// Where the pod with this UID runs, if it has this account.
    pub(super) async fn node_of(&self, uid: &str, namespace: &str, account: &str) -> Result<Option<Arc<str>>, Refusal> {
        self.awaited(|running| {
            let place = running.pods.get(uid)?;
            let is_its = *place.account.namespace == *namespace && *place.account.name == *account;
            is_its.then(|| Arc::clone(&place.node))
        })
        .await
    }

    /// What `look` finds, now or shortly.
    async fn awaited<T>(&self, look: impl Fn(&Running) -> Option<T>) -> Result<Option<T>, Refusal> {
        let mut changes = self.changes.subscribe();
        let deadline = Instant::now() + PATIENCE;
        loop {
            changes.mark_unchanged();
            let found = look(&self.running());
            if found.is_some() {
                return Ok(found);
            }
            if timeout_at(deadline, changes.changed()).await.is_err() {
                break;
            }
        }
        if self.running().is_synced {
            return Ok(None);
        }
        let message = "the pods of the cluster are not known yet".to_owned();
        Err(Refusal { reason: Reason::CaNotReady, message, is_transient: true })
    }

    fn apply(&self, event: Event<Pod>) {
        let is_first = {
            let mut running = self.running();
            let was_synced = running.is_synced;
            running.apply(event);
            running.is_synced && !was_synced
        };
        if is_first {
            tracing::info!(pods = self.known().unwrap_or_default(), "the pods of the cluster are known");
        }
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PodDirectory for Arc<Pods> {
    fn runs<'a>(&'a self, node: Option<&'a str>, identity: &'a Identity) -> Looking<'a> {
        Box::pin(async move {
            if identity.trust_domain != self.trust_domain {
                return Ok(false);
            }
            let account =
                Account { namespace: Arc::clone(&identity.namespace), name: Arc::clone(&identity.service_account) };
            Ok(self.awaited(|running| running.runs(node, &account).then_some(())).await?.is_some())
        })
    }
}

/// Follows all pods. Without the API server what was known last stays in force.
pub(super) async fn follow(client: Client, pods: &Pods) {
    let config = Config::default().page_size(PAGE);
    let mut events = pin!(watcher(Api::<Pod>::all(client), config).default_backoff());
    let mut last_error = String::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                last_error.clear();
                pods.apply(event);
            }
            Err(error) => {
                let error = error.to_string();
                if error != last_error {
                    tracing::warn!(%error, "the watch of pods broke off and is begun again");
                    last_error = error;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, account: &str, node: Option<&str>, phase: &str) -> Pod {
        let spec = json!({"nodeName": node, "serviceAccountName": account, "containers": []});
        let metadata = json!({"name": "p", "namespace": "shop", "uid": uid});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": {"phase": phase}})).unwrap()
    }

    fn runs(running: &Running, node: Option<&str>, account: &str) -> bool {
        running.runs(node, &Account { namespace: "shop".into(), name: account.into() })
    }

    #[test]
    fn a_pod_counts_from_its_node_to_its_end() {
        let mut running = Running::default();
        running.apply(Event::Apply(pod("1", "cart", None, "Pending")));
        assert!(!runs(&running, None, "cart"), "it has no node yet");
        running.apply(Event::Apply(pod("1", "cart", Some("n1"), "Pending")));
        running.apply(Event::Apply(pod("2", "cart", Some("n1"), "Running")));
        assert!(runs(&running, Some("n1"), "cart") && runs(&running, None, "cart"));
        assert!(!runs(&running, Some("n2"), "cart") && !runs(&running, Some("n1"), "web"));
        running.apply(Event::Apply(pod("1", "cart", Some("n1"), "Running")));
        running.apply(Event::Apply(pod("1", "cart", Some("n1"), "Succeeded")));
        assert!(runs(&running, Some("n1"), "cart"), "another one is left");
        running.apply(Event::Delete(pod("1", "cart", Some("n1"), "Succeeded")));
        running.apply(Event::Delete(pod("2", "cart", Some("n1"), "Running")));
        assert!(!runs(&running, None, "cart"));
        assert!(running.accounts.is_empty() && running.pods.is_empty());
    }

    #[test]
    fn another_list_replaces_what_was_known_when_it_is_there_as_a_whole() {
        let mut running = Running::default();
        running.apply(Event::Init);
        running.apply(Event::InitApply(pod("1", "cart", Some("n1"), "Running")));
        assert!(!running.is_synced);
        running.apply(Event::InitDone);
        assert!(running.is_synced);
        running.apply(Event::Init);
        running.apply(Event::InitApply(pod("2", "web", Some("n1"), "Running")));
        assert!(runs(&running, Some("n1"), "cart"), "nobody knows yet that it is gone");
        running.apply(Event::InitDone);
        assert!(!runs(&running, Some("n1"), "cart") && runs(&running, Some("n1"), "web"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_waited_for_and_nobody_is_told_before_all_are_known() {
        let pods = Arc::new(Pods::new("cluster.local"));
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        assert_eq!(pods.runs(Some("n1"), &identity).await.unwrap_err().reason, Reason::CaNotReady);
        pods.apply(Event::Init);
        pods.apply(Event::InitDone);
        assert_eq!(pods.runs(Some("n1"), &identity).await, Ok(false));
        let asking = {
            let (pods, identity) = (Arc::clone(&pods), identity.clone());
            tokio::spawn(async move { pods.runs(Some("n1"), &identity).await })
        };
        tokio::task::yield_now().await;
        pods.apply(Event::Apply(pod("1", "cart", Some("n1"), "Pending")));
        assert_eq!(asking.await.unwrap(), Ok(true));
        let foreign: Identity = "spiffe://elsewhere/ns/shop/sa/cart".parse().unwrap();
        assert_eq!(pods.runs(Some("n1"), &foreign).await, Ok(false));
        assert_eq!(pods.node_of("1", "shop", "cart").await.unwrap().as_deref(), Some("n1"));
        assert_eq!(pods.node_of("1", "shop", "web").await, Ok(None));
    }
}
