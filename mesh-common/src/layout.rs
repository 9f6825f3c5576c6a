//! Compile-time assertions of every layout, checked by the programs' build and by the agent's alike.

use core::mem::{align_of, offset_of, size_of};

use crate::{
    Agent, Approval, Attempt, Backend, BackendKey, CidrKey, Counters, Decision, DecisionKey, Draining, Endpoint, Flow,
    Inbound, Pending, PortKey, Reach, Tuple, Worker, Workload,
};

/// Size and alignment of each type; equal to the sum of its fields, so there is no padding anywhere.
macro_rules! layout {
    ($($type:ty: $size:expr, $align:expr;)+) => {
        const _: () = {
            $(
                assert!(size_of::<$type>() == $size);
                assert!(align_of::<$type>() == $align);
            )+
        };
        #[cfg(feature = "user")]
        const _: () = {
            $(
                // SAFETY: repr(C), integers only, and no padding by the assertions above: any bytes are a value.
                unsafe impl aya::Pod for $type {}
            )+
        };
    };
}

layout! {
    Agent: 6 * 4, 4;
    Draining: 8 + 2 * 4, 8;
    Worker: 2 * 8, 8;
    Workload: 4 * 4 + 2 * 16, 4;
    Pending: 2 * 4, 4;
    Inbound: 2 * 4, 4;
    PortKey: 4 + 2 + 2, 4;
    CidrKey: 2 * 4 + 16, 4;
    Endpoint: 16 + 4, 4;
    Tuple: 2 * 16 + 2 * 2, 4;
    Flow: 2 * 4 + 3 * 20 + 4 * 4 + 2 * 4, 4;
    Reach: 8 + 2 * 4, 8;
    Attempt: 36 + 2 * 4 + 2 * 20, 4;
    DecisionKey: 2 * 4 + 16, 4;
    Decision: 5 * 4, 4;
    BackendKey: 2 * 4, 4;
    Backend: 20 + 4, 4;
    Approval: 8 + 2 * 4 + 4 * 4, 8;
    Counters: 8 * Counters::NAMES.len(), 8;
}

const _: () = {
    assert!(offset_of!(Workload, address6) == 16);
    assert!(offset_of!(Workload, address4) == 32);
    assert!(offset_of!(Flow, original) == 8);
    assert!(offset_of!(Flow, actual) == 28);
    assert!(offset_of!(Flow, chosen) == 48);
    assert!(offset_of!(Flow, generation_slots) == 68);
    assert!(offset_of!(Flow, held) == 84);
    assert!(offset_of!(Attempt, original) == 44);
    assert!(offset_of!(Tuple, source_port) == 32);
    assert!(offset_of!(CidrKey, address) == 8);
    assert!(offset_of!(Approval, generations) == 24);
};
