//! What the maps and pins say of pods: how an earlier agent left them.

use std::{collections::BTreeMap, os::fd::AsRawFd, path::Path, sync::Arc};

use ipnet::IpNet;
use mesh_common::{CIDR_PREFIX, OUTBOUND, WORKLOAD_ARMED, WORKLOAD_STRICT};

use super::{Datapath, Slot};
use crate::{
    model::{Exclusions, Left, Mode, from_words},
    sys,
};

/// A pod that is armed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Armed {
    /// Cookie of its network namespace.
    pub cookie: u64,
    /// Inode of the same; none if there is no such namespace any more.
    pub netns: Option<u64>,
    /// How.
    pub left: Left,
}

impl Datapath {
    /// The pods that are armed, as the kernel has it.
    pub fn armed(&self) -> Vec<Armed> {
        let mut exclusions = self.exclusions();
        let armed =
            self.maps.workloads.iter().filter_map(Result::ok).filter(|(_, pod)| pod.flags & WORKLOAD_ARMED != 0);
        armed
            .map(|(cookie, pod)| Armed {
                cookie,
                netns: netns_of(&self.pins.netns_link(cookie)),
                left: Left {
                    mode: mode(pod.flags),
                    exclusions: Arc::new(exclusions.remove(&Slot(pod.slot)).unwrap_or_default()),
                },
            })
            .collect()
    }

    /// The cgroups of pods that were about to be armed, and in which mode.
    pub fn about_to_be_armed(&self) -> BTreeMap<u64, Mode> {
        let pending = self.maps.pending.iter().filter_map(Result::ok);
        pending.map(|(cgroup, pending)| (cgroup, mode(pending.flags))).collect()
    }

    fn exclusions(&self) -> BTreeMap<Slot, Exclusions> {
        let mut exclusions: BTreeMap<Slot, Exclusions> = BTreeMap::new();
        for key in self.maps.excluded_ports.keys().filter_map(Result::ok) {
            let of = exclusions.entry(Slot(key.slot)).or_default();
            let is_outbound = u32::from(key.direction) == OUTBOUND;
            let ports = if is_outbound { &mut of.outbound_ports } else { &mut of.inbound_ports };
            ports.push(key.port);
        }
        for key in self.maps.excluded_cidrs.keys().filter_map(Result::ok) {
            let (data, bits) = (key.data(), key.prefix_len().saturating_sub(CIDR_PREFIX));
            let Some(cidr) = cidr(data.address, bits) else { continue };
            let of = exclusions.entry(Slot(data.slot)).or_default();
            let cidrs = if data.direction == OUTBOUND { &mut of.outbound_cidrs } else { &mut of.inbound_cidrs };
            cidrs.push(cidr);
        }
        for of in exclusions.values_mut() {
            of.outbound_ports.sort_unstable();
            of.inbound_ports.sort_unstable();
            of.outbound_cidrs.sort_unstable();
            of.inbound_cidrs.sort_unstable();
        }
        exclusions
    }
}

fn mode(flags: u32) -> Mode {
    if flags & WORKLOAD_STRICT == 0 { Mode::Permissive } else { Mode::Strict }
}

/// The block that a key is of, as `cidr_key` makes it.
fn cidr(address: mesh_common::Address, bits: u32) -> Option<IpNet> {
    let address = from_words(address);
    let bits = if address.is_ipv4() { bits.checked_sub(96)? } else { bits };
    IpNet::new(address, u8::try_from(bits).ok()?).ok()
}

/// The network namespace that the link at `pin` is attached to, as the kernel tells (bpf_netns_link_show_fdinfo() in
/// kernel/bpf/net_namespace.c): 0 if it is gone.
fn netns_of(pin: &Path) -> Option<u64> {
    let link = sys::bpf_obj_get(pin).ok()?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd())).ok()?;
    let inode = info.lines().find_map(|line| line.strip_prefix("netns_ino:"))?;
    inode.trim().parse().ok().filter(|inode| *inode != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::words;

    #[test]
    fn blocks_are_read_as_they_are_written() {
        for (text, bits) in [("10.1.0.0/16", 96 + 16), ("10.1.2.3/32", 128), ("fd00::/8", 8), ("::/0", 0)] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(cidr(words(net.network()), bits), Some(net), "{text}");
        }
    }
}
