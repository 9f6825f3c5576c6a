//! The maps; their meaning is in mesh-common.

use aya_ebpf::{
    bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
    cty::c_void,
    helpers::{bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_release, bpf_sk_storage_get},
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap},
};
use mesh_common::{
    Address, Agent, Approval, Backend, BackendKey, CidrKey, Counters, Decision, DecisionKey, Draining, Endpoint, Flow,
    Inbound, LISTENER_ENTRIES, Pending, PortKey, Reach, Tuple, Worker, Workload,
    maps::{
        ATTEMPTS_BYTES, GENERATION_SLOTS, MAX_ADDRESSES, MAX_APPROVED, MAX_BACKENDS, MAX_DECISIONS, MAX_DRAINING,
        MAX_EXCLUDED_CIDRS, MAX_EXCLUDED_PORTS, MAX_HANDOVERS, MAX_NODE_ADDRESSES, MAX_PENDING, MAX_REACH, MAX_SLOTS,
        MAX_WORKERS,
    },
};
use mesh_ebpf::decide;

#[map]
pub(crate) static AGENT: Array<Agent> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static DRAINING: HashMap<u32, Draining> = HashMap::with_max_entries(MAX_DRAINING, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static WORKERS: Array<Worker> = Array::with_max_entries(MAX_WORKERS, 0);
#[map]
pub(crate) static WORKLOADS: HashMap<u64, Workload> = HashMap::with_max_entries(MAX_SLOTS, 0);
#[map]
pub(crate) static PENDING: HashMap<u64, Pending> = HashMap::with_max_entries(MAX_PENDING, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static ADDRESSES: HashMap<Address, Inbound> = HashMap::with_max_entries(MAX_ADDRESSES, 0);
#[map]
pub(crate) static NODE_ADDRESSES: HashMap<Address, u32> = HashMap::with_max_entries(MAX_NODE_ADDRESSES, 0);
#[map]
pub(crate) static EXCLUDED_PORTS: HashMap<PortKey, u32> =
    HashMap::with_max_entries(MAX_EXCLUDED_PORTS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static EXCLUDED_CIDRS: LpmTrie<CidrKey, u32> = LpmTrie::with_max_entries(MAX_EXCLUDED_CIDRS, 0);
#[map]
pub(crate) static LISTENERS: SockMap = SockMap::with_max_entries(LISTENER_ENTRIES, 0);
#[map]
pub(crate) static GENERATIONS: Array<u32> = Array::with_max_entries(GENERATION_SLOTS, 0);
#[map]
pub(crate) static DECISIONS: LruHashMap<DecisionKey, Decision> = LruHashMap::with_max_entries(MAX_DECISIONS, 0);
#[map]
pub(crate) static BACKENDS: LruHashMap<BackendKey, Backend> = LruHashMap::with_max_entries(MAX_BACKENDS, 0);
#[map]
pub(crate) static HANDOVERS: LruHashMap<Tuple, Flow> = LruHashMap::with_max_entries(MAX_HANDOVERS, 0);
#[map]
pub(crate) static APPROVED: LruHashMap<Tuple, Approval> = LruHashMap::with_max_entries(MAX_APPROVED, 0);
#[map]
pub(crate) static REACH: LruHashMap<DecisionKey, Reach> = LruHashMap::with_max_entries(MAX_REACH, 0);
#[map]
pub(crate) static ATTEMPTS: RingBuf = RingBuf::with_byte_size(ATTEMPTS_BYTES, 0);
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(MAX_SLOTS, 0);
#[btf_map]
pub(crate) static FLOWS: FlowStorage = FlowStorage::new();

const BPF_F_NO_PREALLOC: u32 = aya_ebpf::bindings::BPF_F_NO_PREALLOC;
const FLOW_FLAGS: usize = (aya_ebpf::bindings::BPF_F_NO_PREALLOC | aya_ebpf::bindings::BPF_F_CLONE) as usize;
const CREATE: u64 = aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE as u64;

/// Socket storage whose value is inherited by accepted sockets (`BPF_F_CLONE`): how a socket tells that it came from a
/// listener of the agent. aya's own type has no such flag. The fields exist for their BTF alone.
#[repr(C)]
pub(crate) struct FlowStorage {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const Flow,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLOW_FLAGS],
}

// SAFETY: the pointers are null and never read; the loader puts the map in the static's place.
unsafe impl Sync for FlowStorage {}

impl FlowStorage {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The socket's flow, if it has one.
    ///
    /// # Safety
    /// `sk` must be the socket of the program's context, checked against null.
    #[inline(always)]
    pub(crate) unsafe fn get(&self, sk: *mut c_void) -> Option<&mut Flow> {
        // SAFETY: the map is of this value type; the kernel keeps the value alive while the program runs.
        unsafe {
            bpf_sk_storage_get((&raw const *self).cast_mut().cast(), sk, core::ptr::null_mut(), 0)
                .cast::<Flow>()
                .as_mut()
        }
    }

    /// Stores a flow for the socket. False if there was no memory for it.
    ///
    /// # Safety
    /// As [`Self::get`].
    #[inline(always)]
    pub(crate) unsafe fn set(&self, sk: *mut c_void, mut flow: Flow) -> bool {
        // SAFETY: as in get. The kernel itself copies the flow into a new value; an old one is overwritten word by word,
        // because a whole copy compiles to a loop over bytes.
        unsafe {
            let map = (&raw const *self).cast_mut().cast();
            let old = bpf_sk_storage_get(map, sk, core::ptr::null_mut(), 0).cast::<u32>();
            if old.is_null() {
                return !bpf_sk_storage_get(map, sk, (&raw mut flow).cast(), CREATE).is_null();
            }
            let new = (&raw const flow).cast::<u32>();
            for word in 0..size_of::<Flow>() / size_of::<u32>() {
                core::ptr::write_volatile(old.add(word), *new.add(word));
            }
            true
        }
    }
}

/// Whether the agent listens there. The map forgets a socket when it is closed, so this is true of a living agent only.
#[inline(always)]
pub(crate) fn listens(index: u32) -> bool {
    // SAFETY: the map's keys are u32; the reference that the look-up takes is given back.
    unsafe {
        let sk = bpf_map_lookup_elem((&raw const LISTENERS).cast_mut().cast(), (&raw const index).cast());
        if sk.is_null() {
            return false;
        }
        bpf_sk_release(sk);
        true
    }
}

/// Current generation of a slot.
#[inline(always)]
pub(crate) fn generation(slot: u32) -> u32 {
    GENERATIONS.get(slot).copied().unwrap_or(0)
}

/// An address in a program's context, word by word.
///
/// # Safety
/// `address` must be a field of the context.
#[inline(always)]
pub(crate) unsafe fn words(address: *const Address) -> Address {
    let word = address.cast::<u32>();
    // SAFETY: four words, of which the verifier checks each.
    unsafe {
        [
            core::ptr::read_volatile(word),
            core::ptr::read_volatile(word.add(1)),
            core::ptr::read_volatile(word.add(2)),
            core::ptr::read_volatile(word.add(3)),
        ]
    }
}

/// Whether a destination answers, as far as is known; state 0 is nothing.
#[inline(always)]
pub(crate) fn reach(slot: u32, asked: &Endpoint) -> Reach {
    let key = DecisionKey { slot, port: asked.port, address: asked.address };
    // SAFETY: copied at once; of a reused entry the worst is one handshake that is held or answered too early.
    let known = unsafe { REACH.get_ptr(&key).and_then(|r| r.as_ref()).copied() };
    // SAFETY: a helper without arguments.
    decide::reach(known, unsafe { bpf_ktime_get_ns() })
}
