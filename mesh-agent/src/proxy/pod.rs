//! An armed pod, as the workers see it.

use std::{
    net::{IpAddr, TcpListener},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{model::ObjectName, net::netns::Netns, telemetry::PodCounters};

/// An armed pod.
#[derive(Debug)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// Its slot in the kernel's maps.
    pub slot: u32,
    /// Its network namespace.
    pub netns: Arc<Netns>,
    /// Counters, by worker.
    pub counters: Vec<Arc<PodCounters>>,
    /// Generation of the workload as the kernel knows it; 0 while it is being changed.
    generation: AtomicU32,
    /// As they were found in its namespace.
    addresses: RwLock<Arc<[IpAddr]>>,
}

impl Pod {
    /// With zero counters.
    pub fn new(name: ObjectName, slot: u32, netns: Arc<Netns>, workers: usize) -> Self {
        let counters = (0..workers).map(|_| Arc::default()).collect();
        Self { name, slot, netns, counters, generation: AtomicU32::new(0), addresses: RwLock::new([].into()) }
    }

    /// Its addresses, as they were found in its namespace.
    pub fn addresses(&self) -> Arc<[IpAddr]> {
        Arc::clone(&self.addresses.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets them: before the kernel learns of a change.
    pub fn set_addresses(&self, addresses: &[IpAddr]) {
        *self.addresses.write().unwrap_or_else(PoisonError::into_inner) = addresses.into();
    }

    /// Generation of the workload as a source of decisions.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Sets it: before the kernel learns of a change, so that no decision on the former state is taken for current.
    pub fn set_generation(&self, generation: u32) {
        self.generation.store(generation, Ordering::Release);
    }
}

/// A worker's listeners in a pod.
#[derive(Debug)]
pub struct PodListeners {
    /// For what the pod opens.
    pub outbound: TcpListener,
    /// For what is opened to the pod.
    pub inbound: TcpListener,
}
