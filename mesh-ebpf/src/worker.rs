//! Which worker gets a new connection.

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_ns};
use mesh_common::maps::MAX_WORKERS;
use mesh_ebpf::decide::{is_alive, keeps_up};

use crate::maps::{AGENT, WORKERS};

/// What a connection is, as far as it matters where it goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carries {
    /// One connection of an app: to the worker of this CPU, where the app's packets are.
    One,
    /// Other agents' tunnels: it lives long and carries much. To any worker but that of this CPU, which has the packets to
    /// deal with; and where a device interrupts one CPU only, not all of them end up there.
    Tunnels,
}

/// The worker that it goes to; the least late of the living ones when that one is late or stuck; `None` when all are dead.
#[inline(always)]
pub(crate) fn pick(carries: Carries) -> Option<u32> {
    let workers = AGENT.get(0)?.workers;
    if workers == 0 || workers > MAX_WORKERS {
        return None;
    }
    // SAFETY: helpers without arguments.
    let (cpu, now) = unsafe { (bpf_get_smp_processor_id(), bpf_ktime_get_ns()) };
    let away = match carries {
        // SAFETY: a helper without arguments.
        Carries::Tunnels if workers > 1 => 1 + unsafe { bpf_get_prandom_u32() } % (workers - 1),
        _ => 0,
    };
    let chosen = (cpu + away) % workers;
    if keeps_up(WORKERS.get(chosen)?, now) {
        return Some(chosen);
    }
    another(chosen, workers, now)
}

/// The least late of some others, in order from the next one; `own` if it at least lives and they do not.
///
/// Four, each by itself: a loop over all of them is more than the verifier of Linux 6.1 gets through in a minute. On a
/// node with more workers than five, one that is stuck is passed over all the same; that five in a row are, is not.
#[inline(always)]
fn another(own: u32, workers: u32, now: u64) -> Option<u32> {
    // Not an Option: its payload would be a register that was never written, which the verifier refuses to see moved.
    let mut best = MAX_WORKERS;
    let mut best_lag = u64::MAX;
    let mut consider = |index: u32| {
        if let Some(worker) = WORKERS.get(index)
            && is_alive(worker, now)
            && worker.lag_ns < best_lag
        {
            best_lag = worker.lag_ns;
            best = index;
        }
    };
    consider(own);
    consider((own + 1) % workers);
    consider((own + 2) % workers);
    consider((own + 3) % workers);
    consider((own + 4) % workers);
    if best < MAX_WORKERS { Some(best) } else { None }
}
