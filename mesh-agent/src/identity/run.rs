//! Keeping certificates fresh: fetch what is wanted, rotate in time, follow the trust bundle.

use std::{collections::HashMap, sync::Arc, time::Duration};

use aws_lc_rs::rand;
use rustls::pki_types::UnixTime;
use tokio::{
    task::{Id, JoinError, JoinSet},
    time,
};
use tracing::{info, warn};

use super::{
    Identities, Refusal, Svid, TrustBundle,
    held::Held,
    rotate::{later, retry_after, rotate_at},
    store::{Slot, Table},
    verify::Trust,
};
use crate::model::{Identity, Reason};

/// Most requests at the authority at a time.
const CONCURRENT: usize = 8;
/// How long the authority may think.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest sleep: the clock may be set, and the machine may have been suspended.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

type Answer = Result<Svid, Refusal>;

/// Requests on their way.
#[derive(Default)]
struct Fetches {
    tasks: JoinSet<Answer>,
    whose: HashMap<Id, Identity>,
}

impl Identities {
    /// Does the work: fetches, rotates, follows the trust bundle. Never ends; to be run once, on the control thread's
    /// runtime. Dropping it gives up what is being fetched.
    pub async fn run(&self) {
        let mut bundle = self.authority.bundle();
        let mut has_bundle = true;
        let first = bundle.borrow_and_update().clone();
        self.trust(first);
        let mut fetches = Fetches::default();
        loop {
            self.start_due(&mut fetches);
            let sleep = self.until_due(&fetches);
            tokio::select! {
                () = self.wanted.notified() => {}
                Some(done) = fetches.tasks.join_next_with_id() => self.done(&mut fetches, done),
                changed = bundle.changed(), if has_bundle => {
                    has_bundle = changed.is_ok();
                    let current = bundle.borrow_and_update().clone();
                    self.trust(current);
                }
                () = time::sleep(sleep) => self.follow_roots(),
            }
        }
    }

    /// Puts another bundle in force: new configurations for all, so that nothing is resumed that the old one vouched for.
    /// Certificates that the new one does not vouch for are replaced as soon as there are others.
    fn trust(&self, bundle: Arc<TrustBundle>) {
        let now = self.now();
        let mut table = self.write();
        if table.trust.bundle == bundle && table.trust.until.is_none_or(|until| now < until) {
            return;
        }
        let settings = &self.maker.settings;
        let trust = Trust::new(bundle, &settings.trust_domain, &settings.provider, now);
        for why in &trust.unreadable {
            warn!(why, "a root of the trust bundle is left out");
        }
        info!(roots = trust.bundle.roots.len(), usable = trust.peers.is_some(), "trust bundle in force");
        for (identity, slot) in &mut table.slots {
            let Some(held) = &mut slot.held else { continue };
            if let Err(refusal) = held.trust(&trust, &self.maker, now) {
                info!(%identity, why = refusal.message, "the certificate is not of the trust bundle any more");
                slot.next = now;
                slot.refusal = Some(refusal);
            }
        }
        table.trust = trust;
        drop(table);
        self.changed();
    }

    /// A root may have become valid, or invalid, by the passing of time.
    fn follow_roots(&self) {
        let bundle = self.bundle();
        self.trust(bundle);
    }

    fn start_due(&self, fetches: &mut Fetches) {
        let now = self.now();
        let mut table = self.write();
        for identity in table.due(now, CONCURRENT.saturating_sub(fetches.whose.len())) {
            if let Some(slot) = table.slots.get_mut(&identity) {
                slot.is_fetching = true;
            }
            let (authority, own) = (self.authority.clone(), identity.clone());
            let task = fetches.tasks.spawn(async move {
                let answer = time::timeout(PATIENCE, authority.fetch(&own)).await;
                answer.unwrap_or_else(|_| Err(unavailable(format!("no answer within {} s", PATIENCE.as_secs()))))
            });
            fetches.whose.insert(task.id(), identity);
        }
    }

    fn until_due(&self, fetches: &Fetches) -> Duration {
        let now = self.now().as_secs();
        let table = self.read();
        let is_full = fetches.whose.len() >= CONCURRENT;
        let fetch = table.slots.values().filter(|slot| !slot.is_fetching && !is_full).map(|slot| slot.next).min();
        let next = [fetch, table.trust.until].into_iter().flatten().min();
        let left = next.map(|next| Duration::from_secs(next.as_secs().saturating_sub(now)));
        left.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP)
    }

    fn done(&self, fetches: &mut Fetches, done: Result<(Id, Answer), JoinError>) {
        let (id, answer) = match done {
            Ok(done) => done,
            Err(error) => (error.id(), Err(unavailable(format!("the request ended: {error}")))),
        };
        let Some(identity) = fetches.whose.remove(&id) else { return };
        let now = self.now();
        let mut table = self.write();
        let Table { slots, trust } = &mut *table;
        // Gone meanwhile: what was answered is dropped.
        let Some(slot) = slots.get_mut(&identity) else { return };
        let held = answer.and_then(|mut svid| Held::new(&mut svid, &identity, trust, &self.maker, now));
        slot.settle(&identity, held, now);
        drop(table);
        self.changed();
    }
}

impl Table {
    /// Whose turn it is: at most `most`, those without a certificate first, then those that wait longest.
    fn due(&self, now: UnixTime, most: usize) -> Vec<Identity> {
        let mut due: Vec<_> = self.slots.iter().filter(|(_, slot)| !slot.is_fetching && slot.next <= now).collect();
        due.sort_by_key(|(_, slot)| (slot.held.as_ref().is_some_and(|held| held.configs.is_some()), slot.next));
        due.into_iter().take(most).map(|(identity, _)| identity.clone()).collect()
    }
}

impl Slot {
    fn settle(&mut self, identity: &Identity, held: Result<Held, Refusal>, now: UnixTime) {
        self.is_fetching = false;
        match held {
            Ok(held) => {
                // From now on, if the authority dates certificates back: never at once again.
                let issued = held.validity.from.max(now);
                self.next = rotate_at(issued, held.validity.until, random()).max(later(now, Duration::from_secs(1)));
                let (expires, next_rotation) = (held.validity.until.as_secs(), self.next.as_secs());
                info!(%identity, expires, next_rotation, "certificate in use");
                self.held = Some(held);
                self.failures = 0;
                self.refusal = None;
            }
            Err(refusal) => {
                self.failures = self.failures.saturating_add(1);
                let pause = retry_after(self.failures, refusal.is_transient, random());
                self.next = later(now, pause);
                let Refusal { reason, message, .. } = &refusal;
                warn!(%identity, %reason, failures = self.failures, next = self.next.as_secs(), "no certificate: {message}");
                self.refusal = Some(refusal);
            }
        }
    }
}

fn unavailable(message: String) -> Refusal {
    Refusal { reason: Reason::CaUnreachable, message, is_transient: true }
}

/// Zero without random numbers: then there is no jitter.
fn random() -> u32 {
    let mut bytes = [0; 4];
    rand::fill(&mut bytes).map_or(0, |()| u32::from_ne_bytes(bytes))
}
