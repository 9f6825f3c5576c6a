//! Held connections: the app's handshake waits until its destination has answered, so that the app sees what it would
//! see without the mesh: success, ECONNREFUSED, or silence until it gives up.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Error, Held, Pod, Worker, outbound, upstream};
use crate::model::{OrigDst, Reachable, Reason};

/// How long it is taken for granted that a destination answers, counted from its last answer. When that proves wrong, one
/// connection is reset instead of refused.
pub(super) const OPEN_FOR: Duration = Duration::from_mins(1);
/// How long at least it is taken for granted that it does not: long enough for the repeated SYNs of those who wait.
const CLOSED_FOR: Duration = Duration::from_millis(150);

/// A connection that waits.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// The app's end.
    pub downstream: SocketAddr,
    /// What the app asked for.
    pub destination: OrigDst,
    /// The backend that was drawn for it already, if any.
    pub chosen: Option<SocketAddr>,
}

/// Finds out whether the destination answers. The upstream connection that shows it is kept for the app's.
pub(super) async fn run(worker: Rc<Worker>, pod: Arc<Pod>, attempt: Attempt) {
    let Some(begun) = Held::begin(&worker.held, (pod.slot, attempt.downstream)) else { return };
    let started = Instant::now();
    let Attempt { downstream, destination, chosen } = attempt;
    let result = outbound::reach(&worker, &pod, downstream, destination, chosen, &mut None).await;
    let (reachable, valid) = match &result {
        Ok(_) => (Reachable::Open, OPEN_FOR),
        // Silence is answered with silence.
        Err(error) if error.reason() == Reason::UpstreamTimeout => (Reachable::Unknown, Duration::ZERO),
        // SYNs are repeated at doubling intervals: the next one comes after as long a time as has gone by, at most.
        Err(error) => (Reachable::Refused(error.errno()), CLOSED_FOR + started.elapsed()),
    };
    if let Err(error) = &result {
        worker.refused(&pod, attempt.downstream, attempt.destination, error);
    }
    if matches!(result, Err(Error::Refused(_))) {
        worker.forbid(&pod, attempt.destination, valid);
    }
    // Kept before the kernel lets the app's handshake go on.
    begun.finish(result.and_then(upstream::give));
    worker.set_reach(&pod, attempt.destination, reachable, valid);
}
