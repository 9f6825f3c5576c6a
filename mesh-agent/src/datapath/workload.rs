//! Arming and disarming a workload: in which order the kernel learns what.

use std::{
    collections::HashMap,
    fs::File,
    net::{IpAddr, TcpListener},
};

use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use mesh_common::{
    Address, CIDR_PREFIX, CidrKey, Counters, FLOW_LISTENER_INBOUND, FLOW_LISTENER_OUTBOUND, Flow, INBOUND, Inbound,
    LIMBO, OUTBOUND, PortKey, WORKLOAD_ARMED, WORKLOAD_DIRECT, WORKLOAD_EXCLUDES_INBOUND_CIDRS,
    WORKLOAD_EXCLUDES_INBOUND_PORTS, WORKLOAD_EXCLUDES_OUTBOUND_CIDRS, WORKLOAD_EXCLUDES_OUTBOUND_PORTS,
    WORKLOAD_STRICT, Workload, generation_slot, listener_index,
    maps::{GENERATION_SLOTS, MAX_SLOTS},
};

use super::{Datapath, Error, counters, maps::words, pins::unpin};
use crate::model::{Exclusions, Mode};

/// A workload's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// The agent's listeners in one pod, one pair per worker.
#[derive(Debug)]
pub struct Listeners {
    /// Outbound, by worker.
    pub outbound: Vec<TcpListener>,
    /// Inbound, by worker.
    pub inbound: Vec<TcpListener>,
    /// Where the SYNs of held connections meet silence.
    pub limbo: TcpListener,
}

/// What the kernel is told of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadConfig {
    /// Cookie of its network namespace.
    pub cookie: u64,
    /// Its addresses, as found in the namespace.
    pub addresses: Vec<IpAddr>,
    /// Strict or permissive.
    pub mode: Mode,
    /// What is not captured.
    pub exclusions: Exclusions,
    /// Whether the decision cache is consulted.
    pub direct: bool,
    /// Rises with every change of the workload.
    pub generation: u32,
}

impl WorkloadConfig {
    fn flags(&self) -> u32 {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        WORKLOAD_ARMED
            | flag(self.mode == Mode::Strict, WORKLOAD_STRICT)
            | flag(self.direct, WORKLOAD_DIRECT)
            | flag(!self.exclusions.outbound_ports.is_empty(), WORKLOAD_EXCLUDES_OUTBOUND_PORTS)
            | flag(!self.exclusions.outbound_cidrs.is_empty(), WORKLOAD_EXCLUDES_OUTBOUND_CIDRS)
            | flag(!self.exclusions.inbound_ports.is_empty(), WORKLOAD_EXCLUDES_INBOUND_PORTS)
            | flag(!self.exclusions.inbound_cidrs.is_empty(), WORKLOAD_EXCLUDES_INBOUND_CIDRS)
    }

    fn first(&self, of_family: impl Fn(&IpAddr) -> bool) -> Address {
        self.addresses.iter().copied().find(|a| of_family(a)).map_or([0; 4], words)
    }
}

impl Datapath {
    /// Slots that an earlier agent gave out, by namespace cookie.
    pub fn slots(&self) -> HashMap<u64, Slot> {
        self.maps.workloads.iter().filter_map(Result::ok).map(|(cookie, w)| (cookie, Slot(w.slot))).collect()
    }

    /// The highest generation that a workload has or had.
    pub fn last_generation(&self) -> u32 {
        self.maps.workloads.iter().filter_map(Result::ok).map(|(_, workload)| workload.generation).max().unwrap_or(0)
    }

    /// The lowest slot that is in none of `taken`.
    pub fn free_slot(&self, taken: impl Fn(Slot) -> bool) -> Result<Slot, Error> {
        (1..MAX_SLOTS).map(Slot).find(|slot| !taken(*slot)).ok_or(Error::NoSlot(MAX_SLOTS - 1))
    }

    /// Sets the counters of a slot to zero, for a new workload in it.
    pub fn reset_counters(&mut self, slot: Slot) -> Result<(), Error> {
        counters::reset(&mut self.maps.counters, slot.0)
    }

    /// What the programs counted for a slot, over all CPUs.
    pub fn counters(&self, slot: Slot) -> Result<Counters, Error> {
        counters::read(&self.maps.counters, slot.0)
    }

    /// Makes listeners known, before anything is steered to them.
    pub fn set_listeners(&mut self, slot: Slot, listeners: &Listeners) -> Result<(), Error> {
        let sets = [
            (OUTBOUND, FLOW_LISTENER_OUTBOUND, &listeners.outbound),
            (INBOUND, FLOW_LISTENER_INBOUND, &listeners.inbound),
        ];
        for (direction, kind, sockets) in sets {
            for (worker, socket) in (0..).zip(sockets) {
                self.maps.flows.insert(socket, Flow { kind, slot: slot.0, ..Flow::default() }, 0)?;
                self.maps.listeners.set(listener_index(slot.0, direction, worker), socket, 0)?;
            }
        }
        Ok(self.maps.listeners.set(listener_index(slot.0, LIMBO, 0), &listeners.limbo, 0)?)
    }

    /// Arms a workload, or changes an armed one: exclusions, then inbound, then outbound.
    pub fn arm(&mut self, slot: Slot, netns: &File, config: &WorkloadConfig) -> Result<(), Error> {
        self.write_exclusions(slot, &config.exclusions)?;
        self.attach_netns(netns, config.cookie)?;
        let flags = config.flags();
        let addresses: Vec<Address> = config.addresses.iter().copied().map(words).collect();
        self.retain_addresses(slot, &addresses)?;
        for address in &addresses {
            self.maps.addresses.insert(address, Inbound { slot: slot.0, flags }, 0)?;
        }
        let workload = Workload {
            slot: slot.0,
            flags,
            generation: config.generation,
            reserved: 0,
            address6: config.first(IpAddr::is_ipv6),
            address4: config.first(IpAddr::is_ipv4),
        };
        Ok(self.maps.workloads.insert(config.cookie, workload, 0)?)
    }

    /// Stops capturing: outbound, then inbound. Connections that were redirected already still find their listener.
    pub fn disarm(&mut self, slot: Slot, cookie: u64) -> Result<(), Error> {
        if let Ok(mut workload) = self.maps.workloads.get(&cookie, 0) {
            workload.flags = 0;
            self.maps.workloads.insert(cookie, workload, 0)?;
        }
        self.retain_addresses(slot, &[])
    }

    /// Forgets a disarmed workload: no redirected connection is on its way any more.
    pub fn forget(&mut self, slot: Slot, cookie: u64) -> Result<(), Error> {
        unpin(&self.pins.netns_link(cookie))?;
        for worker in 0..mesh_common::maps::MAX_WORKERS {
            for direction in [OUTBOUND, INBOUND, LIMBO] {
                // Empty entries and closed sockets answer with an error that says nothing.
                let _ = self.maps.listeners.clear_index(&listener_index(slot.0, direction, worker));
            }
        }
        self.write_exclusions(slot, &Exclusions::default())?;
        let _ = self.maps.workloads.remove(&cookie);
        Ok(())
    }

    /// Removes what earlier agents left for namespaces that are not in `keep`.
    pub fn forget_others(&mut self, keep: impl Fn(u64) -> bool) -> Result<(), Error> {
        for (cookie, slot) in self.slots() {
            if !keep(cookie) {
                self.disarm(slot, cookie)?;
                self.forget(slot, cookie)?;
            }
        }
        let directory = self.pins.directory().to_owned();
        let cookies = self.pins.netns_cookies().map_err(|source| Error::Pin { path: directory, source })?;
        for cookie in cookies.into_iter().filter(|cookie| !keep(*cookie)) {
            unpin(&self.pins.netns_link(cookie))?;
        }
        Ok(())
    }

    /// Sets the addresses whose connections pass as the node's own.
    pub fn set_node_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let wanted: Vec<Address> = addresses.iter().copied().map(words).collect();
        let present: Vec<Address> = self.maps.node_addresses.keys().filter_map(Result::ok).collect();
        for address in &wanted {
            self.maps.node_addresses.insert(address, 1, 0)?;
        }
        for address in present.iter().filter(|address| !wanted.contains(address)) {
            self.maps.node_addresses.remove(address)?;
        }
        Ok(())
    }

    /// Makes these generations current, each with its slot; what was decided for others is void from here on.
    pub fn set_generations(&mut self, generations: impl IntoIterator<Item = (u32, u32)>) -> Result<(), Error> {
        for (slot, generation) in generations {
            self.maps.generations.set(slot, generation, 0)?;
        }
        Ok(())
    }

    /// The generations as the kernel has them.
    pub fn generations(&self) -> Vec<u32> {
        (0..GENERATION_SLOTS).map(|slot| self.maps.generations.get(&slot, 0).unwrap_or(0)).collect()
    }

    /// Generation slot of an address.
    pub fn generation_slot(address: IpAddr) -> u32 {
        generation_slot(&words(address))
    }

    fn retain_addresses(&mut self, slot: Slot, keep: &[Address]) -> Result<(), Error> {
        let known = self.addresses.entry(slot).or_default();
        for address in std::mem::replace(known, keep.to_vec()).into_iter().filter(|address| !keep.contains(address)) {
            // Another pod's by now, it is not ours to remove.
            let is_own = self.maps.addresses.get(&address, 0).is_ok_and(|inbound| inbound.slot == slot.0);
            if is_own {
                self.maps.addresses.remove(&address)?;
            }
        }
        if keep.is_empty() {
            self.addresses.remove(&slot);
        }
        Ok(())
    }

    fn write_exclusions(&mut self, slot: Slot, exclusions: &Exclusions) -> Result<(), Error> {
        let ports: Vec<PortKey> = [(OUTBOUND, &exclusions.outbound_ports), (INBOUND, &exclusions.inbound_ports)]
            .into_iter()
            .flat_map(|(direction, ports)| {
                ports.iter().map(move |port| PortKey { slot: slot.0, direction: direction as u16, port: *port })
            })
            .collect();
        let cidrs: Vec<Key<CidrKey>> = [(OUTBOUND, &exclusions.outbound_cidrs), (INBOUND, &exclusions.inbound_cidrs)]
            .into_iter()
            .flat_map(|(direction, cidrs)| cidrs.iter().map(move |cidr| cidr_key(slot, direction, cidr)))
            .collect();
        for key in &ports {
            self.maps.excluded_ports.insert(key, 1, 0)?;
        }
        for key in &cidrs {
            self.maps.excluded_cidrs.insert(key, 1, 0)?;
        }
        let stale: Vec<PortKey> = self
            .maps
            .excluded_ports
            .keys()
            .filter_map(Result::ok)
            .filter(|key| key.slot == slot.0 && !ports.contains(key))
            .collect();
        for key in &stale {
            self.maps.excluded_ports.remove(key)?;
        }
        let is_wanted =
            |key: &Key<CidrKey>| cidrs.iter().any(|k| k.prefix_len() == key.prefix_len() && k.data() == key.data());
        let stale: Vec<Key<CidrKey>> = self
            .maps
            .excluded_cidrs
            .keys()
            .filter_map(Result::ok)
            .filter(|key| key.data().slot == slot.0 && !is_wanted(key))
            .collect();
        for key in &stale {
            self.maps.excluded_cidrs.remove(key)?;
        }
        Ok(())
    }
}

fn cidr_key(slot: Slot, direction: u32, cidr: &IpNet) -> Key<CidrKey> {
    let bits = u32::from(cidr.prefix_len()) + if cidr.addr().is_ipv4() { 96 } else { 0 };
    Key::new(CIDR_PREFIX + bits, CidrKey { slot: slot.0, direction, address: words(cidr.network()) })
}
