//! Sessions of the client's side: tickets that servers gave, for the next connection to the same name.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::{
    NamedGroup,
    client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
    pki_types::ServerName,
};

/// Most tickets of one server: it may send as many as it likes.
const MOST_PER_SERVER: usize = 8;

/// All tickets of the node, whoever's they are: one bound for all, of about 2 KiB each. The oldest goes first.
pub(super) struct Sessions {
    kept: Mutex<Kept>,
    stores: AtomicU64,
    most: usize,
}

#[derive(Default)]
struct Kept {
    next: u64,
    by_age: BTreeMap<u64, Ticket>,
    /// By store and server: what is in `by_age`, oldest first.
    by_server: HashMap<u64, HashMap<ServerName<'static>, VecDeque<u64>>>,
}

struct Ticket {
    store: u64,
    server: ServerName<'static>,
    value: Tls13ClientSessionValue,
}

impl Sessions {
    /// At most so many tickets.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { kept: Mutex::default(), stores: AtomicU64::new(0), most })
    }

    /// For one configuration: nobody else sees what it keeps, and all of that is gone when the configuration is.
    pub(super) fn store(self: &Arc<Self>) -> Store {
        Store { sessions: self.clone(), id: self.stores.fetch_add(1, Ordering::Relaxed) }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A configuration's part of [`Sessions`].
pub(super) struct Store {
    sessions: Arc<Sessions>,
    id: u64,
}

impl Drop for Store {
    fn drop(&mut self) {
        let mut kept = self.sessions.kept();
        let gone = kept.by_server.remove(&self.id);
        for number in gone.into_iter().flat_map(HashMap::into_values).flatten() {
            kept.by_age.remove(&number);
        }
    }
}

impl ClientSessionStore for Store {
    // The preferred group is offered first each time, whatever a server took last time.
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, server: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut kept = self.sessions.kept();
        kept.insert(Ticket { store: self.id, server, value });
        while kept.by_age.len() > self.sessions.most {
            kept.drop_oldest();
        }
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.sessions.kept().take_newest(self.id, server)
    }
}

impl Kept {
    fn insert(&mut self, ticket: Ticket) {
        let number = self.next;
        self.next += 1;
        let servers = self.by_server.entry(ticket.store).or_default();
        let numbers = servers.entry(ticket.server.clone()).or_default();
        numbers.push_back(number);
        let superfluous = if numbers.len() > MOST_PER_SERVER { numbers.pop_front() } else { None };
        self.by_age.insert(number, ticket);
        if let Some(number) = superfluous {
            self.by_age.remove(&number);
        }
    }

    fn take_newest(&mut self, store: u64, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let number = self.by_server.get_mut(&store)?.get_mut(server)?.pop_back()?;
        self.forget_if_empty(store, server);
        self.by_age.remove(&number).map(|ticket| ticket.value)
    }

    fn drop_oldest(&mut self) {
        if let Some((_, ticket)) = self.by_age.pop_first() {
            // The oldest of all is the oldest of its server.
            if let Some(numbers) =
                self.by_server.get_mut(&ticket.store).and_then(|servers| servers.get_mut(&ticket.server))
            {
                numbers.pop_front();
            }
            self.forget_if_empty(ticket.store, &ticket.server);
        }
    }

    fn forget_if_empty(&mut self, store: u64, server: &ServerName<'static>) {
        if let Some(servers) = self.by_server.get_mut(&store) {
            if servers.get(server).is_some_and(VecDeque::is_empty) {
                servers.remove(server);
            }
            if servers.is_empty() {
                self.by_server.remove(&store);
            }
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("id", &self.id).finish_non_exhaustive()
    }
}
