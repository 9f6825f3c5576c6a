//! All that the server holds, and the work that it does by itself.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::rand;
use serde_json::Value;
use tokio::{runtime::Handle, sync::watch};

use super::{
    Cut, Options, User, crd,
    fault::{Faults, Requests},
    forward::Forwards,
    kinds::{self, Kind},
    namespace,
    rbac::{Cached, Decided},
    status::Failure,
    store::Store,
    token::{Cache, Signer},
};

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    pub(super) faults: Faults,
    pub(super) requests: Requests,
    pub(super) forwards: Forwards,
    pub(super) cuts: watch::Sender<Cut>,
    pub(super) options: Options,
    pub(super) runtime: Handle,
    address: Mutex<SocketAddr>,
}

/// What requests read and write, one at a time.
#[derive(Debug)]
pub(super) struct State {
    pub(super) store: Store,
    /// With the name of the definition, if they have one.
    kinds: Vec<(Option<String>, Arc<Kind>)>,
    /// By token.
    pub(super) users: HashMap<String, User>,
    pub(super) signer: &'static Signer,
    pub(super) tokens: Cache,
    pub(super) policy: Cached,
    /// What was asked of the authorizer, each once.
    pub(super) decided: BTreeSet<Decided>,
    /// Definitions on their way to be established.
    pub(super) installing: Vec<String>,
    pub(super) work: Vec<Work>,
    /// Number of services that got an address.
    pub(super) services: u64,
}

/// What a write leaves to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Bring a definition to established.
    Install(String),
    /// Empty a namespace and remove it.
    End(String),
}

impl Shared {
    pub(super) fn new(options: Options, address: SocketAddr, runtime: Handle) -> Self {
        let state = State {
            store: Store::new(),
            kinds: kinds::built_in().into_iter().map(|kind| (None, kind)).collect(),
            users: HashMap::new(),
            signer: Signer::shared(),
            tokens: Cache::new(options.token_cache),
            policy: Cached::default(),
            decided: BTreeSet::new(),
            installing: Vec::new(),
            work: Vec::new(),
            services: 0,
        };
        Self {
            state: Mutex::new(state),
            faults: Faults::default(),
            requests: Requests::default(),
            forwards: Forwards::default(),
            cuts: watch::Sender::new(Cut::Clean),
            options,
            runtime,
            address: Mutex::new(address),
        }
    }

    /// Locks the state. Never across an await.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn address(&self) -> SocketAddr {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        let is = |kind: &&Arc<Kind>| kind.group == group && kind.version == version && kind.plural == plural;
        self.kinds.iter().map(|(_, kind)| kind).find(is).cloned()
    }

    /// By `apiVersion` and `kind` of an object.
    pub(super) fn find_kind(&self, object: &Value) -> Option<Arc<Kind>> {
        let is = |kind: &&Arc<Kind>| object["apiVersion"] == kind.api_version() && object["kind"] == kind.kind;
        self.kinds.iter().map(|(_, kind)| kind).find(is).cloned()
    }

    pub(super) fn kinds(&self) -> Vec<Arc<Kind>> {
        self.kinds.iter().map(|(_, kind)| Arc::clone(kind)).collect()
    }

    /// The kind that events are stored as.
    pub(super) fn core_event(&self) -> Arc<Kind> {
        self.find("", "v1", "events").expect("built in")
    }

    pub(super) fn serves(&self, definition: &str) -> bool {
        self.kinds.iter().any(|(of, _)| of.as_deref() == Some(definition))
    }

    /// Serves the kinds of a definition, in place of those it had.
    pub(super) fn serve(&mut self, definition: &str, kinds: Vec<Arc<Kind>>) {
        self.unserve(definition);
        self.kinds.extend(kinds.into_iter().map(|kind| (Some(definition.to_owned()), kind)));
    }

    /// Serves them no more, and returns them.
    pub(super) fn unserve(&mut self, definition: &str) -> Vec<Arc<Kind>> {
        let of = |(of, _): &mut (Option<String>, _)| of.as_deref() == Some(definition);
        self.kinds.extract_if(.., of).map(|(_, kind)| kind).collect()
    }
}

/// Starts the work that requests have left.
pub(super) fn settle(shared: &Arc<Shared>) {
    for work in std::mem::take(&mut shared.state().work) {
        let shared_by_task = Arc::clone(shared);
        match work {
            Work::Install(name) => shared.runtime.spawn(crd::install(shared_by_task, name)),
            Work::End(name) => shared.runtime.spawn(namespace::end(shared_by_task, name)),
        };
    }
}

/// A random UUID (RFC 9562, version 4).
pub(super) fn uid() -> String {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).expect("random bytes");
    let number = u128::from_be_bytes(bytes);
    let number = number & !(0xf << 76) | 0x4 << 76;
    let number = number & !(0x3 << 62) | 0x2 << 62;
    let hex = format!("{number:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

/// What is appended to `generateName`.
pub(super) fn random_suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = [0; 5];
    rand::fill(&mut bytes).expect("random bytes");
    bytes
        .iter()
        .filter_map(|byte| LETTERS.get(usize::from(*byte) % LETTERS.len()))
        .map(|&byte| char::from(byte))
        .collect()
}

/// A body in YAML, of which JSON is a part.
pub(super) fn yaml(bytes: &[u8]) -> Result<Value, Failure> {
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    serde_saphyr::from_slice(bytes).map_err(|error| Failure::bad_request(format!("error decoding YAML: {error}")))
}
