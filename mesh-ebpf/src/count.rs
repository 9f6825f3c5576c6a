//! Counting, one value per CPU: no atomics.

use mesh_common::Counters;

use crate::maps::COUNTERS;

/// Lets `change` at the counters of a slot on this CPU.
#[inline(always)]
pub(crate) fn count(slot: u32, change: impl FnOnce(&mut Counters)) {
    if let Some(counters) = COUNTERS.get_ptr_mut(slot) {
        // SAFETY: a per-CPU value; programs of these types are not preempted by one another on a CPU, and a lost
        // count is the worst that a softirq between two instructions can do.
        change(unsafe { &mut *counters });
    }
}
