//! Reading what the programs counted.

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
    let cpus =
        nr_cpus().map_err(|(_, source)| Error::Pin { path: "/sys/devices/system/cpu/possible".into(), source })?;
    let zeros = PerCpuValues::try_from(vec![Counters::default(); cpus])
        .map_err(|source| Error::Pin { path: "/sys/devices/system/cpu/possible".into(), source })?;
    Ok(map.set(slot, zeros, 0)?)
}
