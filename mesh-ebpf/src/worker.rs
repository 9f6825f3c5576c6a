//! Which worker gets a new connection.

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use mesh_common::{Worker, maps::MAX_WORKERS};
use mesh_ebpf::decide::{is_alive, keeps_up};

use crate::maps::{AGENT, WORKERS};

/// The worker of this CPU; the least late of the living ones when that one is late or stuck; `None` when all are dead.
#[inline(always)]
pub(crate) fn pick() -> Option<u32> {
    let workers = AGENT.get(0)?.workers;
    if workers == 0 || workers > MAX_WORKERS {
        return None;
    }
    // SAFETY: helpers without arguments.
    let (cpu, now) = unsafe { (bpf_get_smp_processor_id(), bpf_ktime_get_ns()) };
    let own = cpu % workers;
    if keeps_up(WORKERS.get(own)?, now) {
        return Some(own);
    }
    least_late(workers, now)
}

#[inline(never)]
fn least_late(workers: u32, now: u64) -> Option<u32> {
    let mut best = None;
    let mut best_lag = u64::MAX;
    for index in 0..MAX_WORKERS {
        if index >= workers {
            break;
        }
        let worker: &Worker = WORKERS.get(index)?;
        if is_alive(worker, now) && worker.lag_ns < best_lag {
            best_lag = worker.lag_ns;
            best = Some(index);
        }
    }
    best
}
