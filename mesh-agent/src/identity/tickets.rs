//! Sessions of the server's side: everything is in the ticket, nothing is kept here.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use rustls::{pki_types::UnixTime, server::ProducesTickets, time_provider::TimeProvider};
use zeroize::Zeroizing;

/// How long a session can be resumed. Short, since whoever learns the key can read what resumed sessions say without a new
/// exchange of keys (there is always one), and since the other end's certificate is not shown again.
const LIFETIME: Duration = Duration::from_hours(1);

/// Makes and reads the tickets of one server configuration: `nonce || AES-256-GCM(time of issue || session)`. A key makes
/// tickets for one lifetime, and reads them for another; then it is gone. A configuration's keys are its own: a ticket
/// means nothing to another identity, nor to the same one after a rotation or a change of trust.
pub(super) struct Tickets {
    clock: Arc<dyn TimeProvider>,
    keys: RwLock<Option<Keys>>,
}

struct Keys {
    since: UnixTime,
    current: Arc<RandomizedNonceKey>,
    previous: Option<Arc<RandomizedNonceKey>>,
}

impl Tickets {
    /// Keys are made when they are needed first.
    pub(super) fn new(clock: Arc<dyn TimeProvider>) -> Self {
        Self { clock, keys: RwLock::default() }
    }

    /// The keys of now, the one to write with first. None without random numbers.
    fn keys(&self, now: UnixTime) -> [Option<Arc<RandomizedNonceKey>>; 2] {
        let is_current = |keys: &Keys| now.as_secs().abs_diff(keys.since.as_secs()) < LIFETIME.as_secs();
        let both = |keys: &Keys| [Some(keys.current.clone()), keys.previous.clone()];
        if let Some(keys) = &*self.keys.read().unwrap_or_else(PoisonError::into_inner)
            && is_current(keys)
        {
            return both(keys);
        }
        let mut slot = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = &*slot
            && is_current(keys)
        {
            return both(keys);
        }
        let is_recent = |keys: &Keys| now.as_secs().abs_diff(keys.since.as_secs()) < 2 * LIFETIME.as_secs();
        let previous = slot.take().filter(is_recent).map(|keys| keys.current);
        let Some(current) = new_key() else { return [None, previous] };
        let current = Arc::new(current);
        both(slot.insert(Keys { since: now, current, previous }))
    }
}

fn new_key() -> Option<RandomizedNonceKey> {
    let mut bytes = Zeroizing::new([0; 32]);
    rand::fill(&mut *bytes).ok()?;
    RandomizedNonceKey::new(&AES_256_GCM, &*bytes).ok()
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME.as_secs() as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let now = self.clock.current_time()?;
        let [Some(key), _] = self.keys(now) else { return None };
        let mut sealed = Vec::with_capacity(8 + plain.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(&now.as_secs().to_be_bytes());
        sealed.extend_from_slice(plain);
        let nonce = key.seal_in_place_append_tag(Aad::empty(), &mut sealed).ok()?;
        let mut ticket = nonce.as_ref().to_vec();
        ticket.append(&mut sealed);
        Some(ticket)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let now = self.clock.current_time()?;
        let (nonce, sealed) = cipher.split_first_chunk::<NONCE_LEN>()?;
        let open = |key: Arc<RandomizedNonceKey>| {
            let mut opened = sealed.to_vec();
            let length = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), &mut opened).ok()?.len();
            opened.truncate(length);
            Some(opened)
        };
        let opened = self.keys(now).into_iter().flatten().find_map(open)?;
        let (issued, plain) = opened.split_first_chunk::<8>()?;
        let age = now.as_secs().abs_diff(u64::from_be_bytes(*issued));
        (age <= LIFETIME.as_secs()).then(|| plain.to_vec())
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::Clock;

    #[test]
    fn a_ticket_is_good_for_an_hour() {
        let clock = Clock::new();
        let tickets = Tickets::new(Arc::new(clock.clone()));
        let ticket = tickets.encrypt(b"session").unwrap();
        assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        clock.advance(LIFETIME);
        // By the previous key now.
        assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        clock.advance(Duration::from_secs(1));
        assert_eq!(tickets.decrypt(&ticket), None);
    }

    #[test]
    fn keys_do_not_outlive_their_second_hour() {
        let clock = Clock::new();
        let tickets = Tickets::new(Arc::new(clock.clone()));
        let key = |tickets: &Tickets| {
            let keys = tickets.keys(tickets.clock.current_time().unwrap());
            keys.map(|key| key.map(|key| Arc::as_ptr(&key)))
        };
        let [first, none] = key(&tickets);
        assert_eq!(none, None);
        clock.advance(LIFETIME);
        let [second, previous] = key(&tickets);
        assert_eq!(previous, first);
        assert_ne!(second, first);
        clock.advance(2 * LIFETIME);
        assert_eq!(key(&tickets)[1], None);
    }

    #[test]
    fn a_ticket_of_somebody_else_or_a_changed_one_means_nothing() {
        let clock: Arc<dyn TimeProvider> = Arc::new(Clock::new());
        let (tickets, others) = (Tickets::new(clock.clone()), Tickets::new(clock));
        let ticket = tickets.encrypt(b"session").unwrap();
        assert_eq!(others.decrypt(&ticket), None);
        for index in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[index] ^= 1;
            assert_eq!(tickets.decrypt(&changed), None);
            assert_eq!(tickets.decrypt(&ticket[..index]), None);
        }
    }
}
