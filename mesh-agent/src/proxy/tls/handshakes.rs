//! Handshakes that others have begun and not ended: so many per worker, and then the oldest makes room. Whoever opens
//! thousands and says nothing pushes out his own, and those who go on are done long before it is their turn.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use tokio::sync::oneshot;

/// How many a worker keeps. One costs a descriptor and about 10 KB.
const MOST: usize = 1024;

/// The open handshakes of a worker.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Handshakes(RefCell<Open>);

#[derive(Debug, Default)]
struct Open {
    next: u64,
    by_age: BTreeMap<u64, oneshot::Sender<()>>,
}

/// An open handshake, until it is dropped.
#[derive(Debug)]
pub(in crate::proxy) struct OpenHandshake {
    all: Rc<Handshakes>,
    id: u64,
    pushed_out: oneshot::Receiver<()>,
}

impl Handshakes {
    /// One more.
    pub(in crate::proxy) fn begin(self: &Rc<Self>) -> OpenHandshake {
        let mut open = self.0.borrow_mut();
        if open.by_age.len() >= MOST
            && let Some((_, oldest)) = open.by_age.pop_first()
        {
            let _ = oldest.send(());
        }
        let (push_out, pushed_out) = oneshot::channel();
        let id = open.next;
        open.next += 1;
        open.by_age.insert(id, push_out);
        OpenHandshake { all: Rc::clone(self), id, pushed_out }
    }
}

impl OpenHandshake {
    /// Waits until newer ones need the room.
    pub(in crate::proxy) async fn pushed_out(&mut self) {
        let _ = (&mut self.pushed_out).await;
    }
}

impl Drop for OpenHandshake {
    fn drop(&mut self) {
        self.all.0.borrow_mut().by_age.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_makes_room() {
        let all = Rc::new(Handshakes::default());
        let mut first = all.begin();
        let done = all.begin();
        drop(done);
        let mut others: Vec<_> = (0..MOST).map(|_| all.begin()).collect();
        first.pushed_out().await;
        assert_eq!(all.0.borrow().by_age.len(), MOST);
        assert!(others[0].pushed_out.try_recv().is_err(), "only as many as there is need for");
        drop((first, others));
        assert!(all.0.borrow().by_age.is_empty());
    }
}
