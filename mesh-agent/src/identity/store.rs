//! The certificates of this node's workloads: one per identity, shared by the control thread, which keeps them fresh, and
//! the workers, which use them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{CertificateDer, UnixTime},
};
use tokio::sync::{Notify, watch};

use super::{
    CertificateAuthority, Refusal, TrustBundle,
    config::{Configs, Maker, Settings},
    held::Held,
    leaf,
    verify::Trust,
};
use crate::model::{CertificateRefusal, CertificateState, CertificateStatus, ChainLink, Identity, Reason};

const EPOCH: UnixTime = UnixTime::since_unix_epoch(Duration::ZERO);

/// The certificates of this node's workloads.
///
/// [`Identities::want`] says whose, [`Identities::run`] fetches and rotates them, the rest reads. A handshake takes a read
/// lock for the time of a look-up; rotation writes for the time of replacing a pointer. A configuration that was handed out
/// stays as it is: what is open stays open.
///
/// Private keys are in this memory only, as AWS-LC's objects within the configurations. AWS-LC overwrites them when the
/// last configuration that holds them is dropped: at the latest when the last connection that was made with them ends.
pub struct Identities {
    pub(super) authority: Arc<dyn CertificateAuthority>,
    pub(super) maker: Maker,
    table: RwLock<Table>,
    /// To whoever runs: the wanted identities have changed.
    pub(super) wanted: Notify,
    changes: watch::Sender<u64>,
}

/// What is held and what is known.
pub(super) struct Table {
    pub(super) slots: HashMap<Identity, Slot>,
    pub(super) trust: Trust,
}

/// An identity that is wanted.
pub(super) struct Slot {
    pub(super) held: Option<Held>,
    /// When to ask for the next certificate.
    pub(super) next: UnixTime,
    /// Whether one is being asked for.
    pub(super) is_fetching: bool,
    /// Failures in a row.
    pub(super) failures: u32,
    /// Why the last one failed.
    pub(super) refusal: Option<Refusal>,
}

impl Identities {
    /// Certificates by `authority` for identities of `trust_domain`. `alpn_client` is offered to servers, `alpn_server`
    /// accepted from clients, the preferred protocol first.
    pub fn new(
        authority: Arc<dyn CertificateAuthority>,
        trust_domain: Arc<str>,
        alpn_client: Vec<Vec<u8>>,
        alpn_server: Vec<Vec<u8>>,
    ) -> Arc<Self> {
        Self::with(authority, Settings::new(trust_domain, alpn_client, alpn_server))
    }

    /// The same with cryptography and a clock of one's own.
    pub fn with(authority: Arc<dyn CertificateAuthority>, settings: Settings) -> Arc<Self> {
        let maker = Maker::new(settings);
        let Settings { trust_domain, provider, .. } = &maker.settings;
        let trust = Trust::new(Arc::default(), trust_domain, provider, EPOCH);
        let table = RwLock::new(Table { slots: HashMap::new(), trust });
        Arc::new(Self { authority, maker, table, wanted: Notify::new(), changes: watch::Sender::new(0) })
    }

    /// These identities run on this node, no others. What is new is fetched at once; what has gone is dropped at once.
    pub fn want(&self, identities: &BTreeSet<Identity>) {
        let mut table = self.write();
        table.slots.retain(|identity, _| identities.contains(identity));
        for identity in identities {
            if !table.slots.contains_key(identity) {
                let slot = Slot { held: None, next: EPOCH, is_fetching: false, failures: 0, refusal: None };
                table.slots.insert(identity.clone(), slot);
            }
        }
        drop(table);
        self.wanted.notify_one();
        self.changed();
    }

    /// To call others as `own`.
    ///
    /// # Errors
    /// [`Reason::CertificateMissing`], [`Reason::CertificateExpired`] or [`Reason::TrustUnknown`].
    pub fn client(&self, own: &Identity) -> Result<Arc<ClientConfig>, Reason> {
        self.configs(own).map(|configs| configs.client)
    }

    /// To be called as `own`.
    ///
    /// # Errors
    /// As [`Identities::client`].
    pub fn server(&self, own: &Identity) -> Result<Arc<ServerConfig>, Reason> {
        self.configs(own).map(|configs| configs.server)
    }

    fn configs(&self, own: &Identity) -> Result<Configs, Reason> {
        let table = self.read();
        let held = table.slots.get(own).and_then(|slot| slot.held.as_ref()).ok_or(Reason::CertificateMissing)?;
        if !held.validity.includes(self.now()) {
            return Err(Reason::CertificateExpired);
        }
        held.configs.clone().ok_or(Reason::TrustUnknown)
    }

    /// Whose certificate chain (leaf first) this is, which one of our configurations has verified, now or when the session
    /// began that is being resumed. `None` if its leaf is not the SVID of a service account of the trust domain, or is not
    /// valid any more.
    pub fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<Identity> {
        let leaf = leaf::read(chain.first()?).ok()?;
        let is_ours = leaf.identity.trust_domain == self.maker.settings.trust_domain;
        (is_ours && leaf.validity.includes(self.now())).then_some(leaf.identity)
    }

    /// Counts changes of what is held or trusted, for those who wait for a certificate.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// As [`Identities::changes`], while the first certificate for `own` is on its way: it has been asked for and was not
    /// refused yet. Whoever meets [`Reason::CertificateMissing`] then need not wait long.
    pub fn awaited(&self, own: &Identity) -> Option<watch::Receiver<u64>> {
        // Subscribed before it is looked: what comes in between is a change.
        let changes = self.changes();
        let is_coming = self.read().slots.get(own).is_some_and(|slot| slot.held.is_none() && slot.failures == 0);
        is_coming.then_some(changes)
    }

    /// All certificates, by identity.
    pub fn certificates(&self) -> Vec<CertificateStatus> {
        let now = self.now();
        let table = self.read();
        let slots = table.slots.iter().map(|(identity, slot)| {
            let chain = slot.held.as_ref().map(|held| held.certified.clone());
            (slot.status(identity, now), chain)
        });
        let slots: Vec<_> = slots.collect();
        drop(table);
        let mut certificates: Vec<_> = slots
            .into_iter()
            .map(|(mut status, certified)| {
                let chain = certified.as_ref().map_or(&[][..], |certified| &certified.cert);
                status.serial = chain.first().and_then(leaf::serial);
                status.chain = chain.iter().filter_map(leaf::link).collect();
                status
            })
            .collect();
        certificates.sort_by(|one, other| one.identity.cmp(&other.identity));
        certificates
    }

    /// The roots of the trust bundle, also those that are not valid now.
    pub fn roots(&self) -> Vec<ChainLink> {
        let bundle = self.bundle();
        bundle.roots.iter().filter_map(leaf::link).collect()
    }

    /// The trust bundle in force.
    pub fn bundle(&self) -> Arc<TrustBundle> {
        self.read().trust.bundle.clone()
    }

    /// Whole seconds. A clock that cannot be read says 1970: nothing is valid then.
    pub(super) fn now(&self) -> UnixTime {
        self.maker.settings.clock.current_time().unwrap_or(EPOCH)
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }
}

impl Slot {
    /// Without what has to be read from the certificates.
    fn status(&self, identity: &Identity, now: UnixTime) -> CertificateStatus {
        let state = match &self.held {
            None => CertificateState::Missing,
            Some(held) if !held.validity.includes(now) => CertificateState::Expired,
            Some(Held { configs: None, .. }) => CertificateState::TrustUnknown,
            Some(_) => CertificateState::Valid,
        };
        let validity = self.held.as_ref().map(|held| held.validity);
        CertificateStatus {
            identity: identity.clone(),
            state,
            serial: None,
            issued: validity.map(|validity| validity.from.as_secs()),
            expires: validity.map(|validity| validity.until.as_secs()),
            next_rotation: self.next.as_secs(),
            chain: Vec::new(),
            refusal: self.refusal.as_ref().map(|refusal| CertificateRefusal {
                reason: refusal.reason,
                message: refusal.message.clone(),
                attempts: self.failures,
            }),
        }
    }
}
