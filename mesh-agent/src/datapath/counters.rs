//! Reading what the programs counted.

use std::sync::OnceLock;

use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use mesh_common::Counters;

use super::Error;

/// The sum over all CPUs.
pub(super) fn read(map: &PerCpuArray<MapData, Counters>, slot: u32) -> Result<Counters, Error> {
    let mut sum = Counters::default();
    for counters in map.get(&slot, 0)?.iter() {
        sum.add(counters);
    }
    Ok(sum)
}

/// All zero.
pub(super) fn reset(map: &mut PerCpuArray<MapData, Counters>, slot: u32) -> Result<(), Error> {
    let cpus = cpus()?;
    let zeros = PerCpuValues::try_from(vec![Counters::default(); cpus])
        .map_err(|source| Error::Pin { path: "/sys/devices/system/cpu/possible".into(), source })?;
    Ok(map.set(slot, zeros, 0)?)
}

/// Values of a per-CPU map; they do not change while the machine runs.
fn cpus() -> Result<usize, Error> {
    static CPUS: OnceLock<usize> = OnceLock::new();
    if let Some(cpus) = CPUS.get() {
        return Ok(*cpus);
    }
    let cpus =
        nr_cpus().map_err(|(_, source)| Error::Pin { path: "/sys/devices/system/cpu/possible".into(), source })?;
    Ok(*CPUS.get_or_init(|| cpus))
}
