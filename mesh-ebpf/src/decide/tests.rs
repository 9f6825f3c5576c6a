use mesh_common::{FLOW_DIRECT, FLOW_REDIRECTED, REACH_OPEN, maps::MAX_SLOTS};

use super::*;

const POD4: Address = v4_mapped(0x0a0a_0102_u32.to_be());
const POD6: Address = [0xfd00_0000_u32.to_be(), 0, 0, 2_u32.to_be()];
const STRICT: u32 = WORKLOAD_STRICT;

fn v4(a: u8, b: u8, c: u8, d: u8) -> Address {
    v4_mapped(u32::from_ne_bytes([a, b, c, d]))
}

/// The slot that an address of the connect hook names; 0 for the pods' own loopback addresses.
fn slot_of_loopback(address: u32) -> u32 {
    let [first, high, low, _] = address.to_ne_bytes();
    let slot = u32::from(u16::from_be_bytes([high, low]));
    if first == 127 && slot > 256 && slot < 256 + MAX_SLOTS { slot - 256 } else { 0 }
}

#[test]
fn tcp_and_mptcp_are_ours_and_nothing_else() {
    assert!(is_tcp(6) && is_tcp(262));
    for protocol in [0, 1, 17, 33, 132, 136] {
        assert!(!is_tcp(protocol), "{protocol}");
    }
}

#[test]
fn loopback_and_unspecified_stay_in_the_pod() {
    for inside in [v4(127, 0, 0, 1), v4(127, 200, 3, 4), v4(0, 0, 0, 0), [0; 4], [0, 0, 0, 1_u32.to_be()]] {
        assert!(stays_in_pod(&inside), "{inside:x?}");
    }
    for outside in [v4(128, 0, 0, 1), v4(10, 0, 0, 1), POD6, [0, 0, 0, 2_u32.to_be()], v4(1, 0, 0, 127)] {
        assert!(!stays_in_pod(&outside), "{outside:x?}");
    }
}

#[test]
fn outbound_fails_open_or_closed_by_mode() {
    let cases = [
        ((0, false, true, true), Outbound::Redirect),
        ((STRICT, false, true, true), Outbound::Redirect),
        ((STRICT, true, false, false), Outbound::PassExcluded),
        ((0, false, true, false), Outbound::PassUnavailable),
        ((STRICT, false, true, false), Outbound::RefuseUnavailable),
        ((0, false, false, true), Outbound::PassUnredirectable),
        ((STRICT, false, false, true), Outbound::RefuseUnredirectable),
        ((STRICT, false, false, false), Outbound::RefuseUnredirectable),
    ];
    for ((flags, excluded, redirectable, available), expected) in cases {
        assert_eq!(outbound(flags, excluded, redirectable, available), expected);
    }
}

#[test]
fn inbound_lets_only_the_known_through() {
    let cases = [
        ((STRICT, true, false, None, false), Inbound::PassNode),
        ((STRICT, false, true, None, false), Inbound::PassExcluded),
        ((STRICT, false, false, Some(FLOW_DIRECT), false), Inbound::PassDirect),
        ((STRICT, false, false, Some(FLOW_UPSTREAM), true), Inbound::PassRelayed),
        ((0, false, false, None, true), Inbound::Redirect),
        ((0, false, false, None, false), Inbound::PassUnavailable),
        ((STRICT, false, false, None, false), Inbound::RefuseUnavailable),
    ];
    for ((flags, node, excluded, approved, available), expected) in cases {
        assert_eq!(inbound(flags, node, excluded, approved, available), expected);
    }
}

#[test]
fn redirected_addresses_name_their_slot_and_differ() {
    for slot in [1, 2, 255, 256, 1023] {
        let workload = Workload { slot, address4: POD4, address6: POD6, ..Workload::default() };
        for random in [0, 1, 255, 256, u32::MAX] {
            let target = redirect_target(&workload, &v4(10, 0, 0, 9), random).expect("v4");
            assert!(is_loopback(&target.address), "{target:x?}");
            assert_eq!(slot_of_loopback(target.address[3]), slot);
            assert_eq!(target.port, u32::from(OUTBOUND_PORT));
            let target = redirect_target(&workload, &[1, 2, 3, 4], random).expect("v6");
            assert_eq!(target.address, POD6);
            assert!(is_outbound_port(target.port), "{target:x?}");
        }
    }
    assert_ne!(
        redirect_target(&Workload { slot: 1, ..Workload::default() }, &POD4, 1),
        redirect_target(&Workload { slot: 1, ..Workload::default() }, &POD4, 2),
    );
}

#[test]
fn an_ipv6_connect_of_a_pod_without_ipv6_cannot_be_redirected() {
    let workload = Workload { slot: 3, address4: POD4, ..Workload::default() };
    assert_eq!(redirect_target(&workload, &POD6, 7), None);
}

#[test]
fn ordinary_loopback_addresses_name_no_slot() {
    for address in [v4(127, 0, 0, 1), v4(127, 0, 1, 1), v4(127, 1, 0, 9), v4(10, 1, 1, 1), v4(127, 255, 255, 255)] {
        assert_eq!(slot_of_loopback(address[3]), 0, "{address:x?}");
    }
}

#[test]
fn a_decision_holds_only_for_both_generations() {
    let decision = Decision { way: WAY_DIRECT, source_generation: 4, generation: 9, ..Decision::default() };
    assert!(is_current(&decision, 4, 9));
    assert!(!is_current(&decision, 5, 9));
    assert!(!is_current(&decision, 4, 10));
    assert!(!is_current(&Decision { way: 0, ..decision }, 4, 9));
}

#[test]
fn every_backend_is_drawn_and_none_beyond() {
    for count in [1_u32, 2, 3, 7, 64] {
        let mut seen = vec![0_u32; count as usize];
        for step in 0..10_000_u32 {
            seen[draw(step.wrapping_mul(0x9e37_79b9), count) as usize] += 1;
        }
        let expected = 10_000 / count;
        assert!(seen.iter().all(|n| n.abs_diff(expected) <= expected / 5 + 1), "{count}: {seen:?}");
    }
    assert_eq!(draw(u32::MAX, 5), 4);
}

#[test]
fn an_approval_ends_with_its_deadline_or_a_generation() {
    let approval =
        Approval { deadline_ns: 100, kind: FLOW_DIRECT, generations: [1, 2], generation_slots: [7, 8], reserved: 0 };
    assert!(is_approved(&approval, 99, [1, 2]));
    assert!(!is_approved(&approval, 100, [1, 2]));
    assert!(!is_approved(&approval, 99, [2, 2]));
    assert!(!is_approved(&approval, 99, [1, 3]));
    assert!(is_approved(&Approval { kind: FLOW_UPSTREAM, ..approval }, 99, [5, 6]));
}

#[test]
fn a_worker_is_dead_when_stale_and_avoided_when_late() {
    let worker = Worker { beat_ns: 1_000, lag_ns: 0 };
    assert!(keeps_up(&worker, 1_000) && keeps_up(&worker, 999 + WORKER_STALE_NS));
    assert!(!is_alive(&worker, 1_000 + WORKER_STALE_NS));
    let late = Worker { lag_ns: WORKER_LAG_NS, ..worker };
    assert!(is_alive(&late, 1_000) && !keeps_up(&late, 1_000));
    assert!(!is_alive(&Worker::default(), 5), "a worker that never beat");
}

#[test]
fn a_flow_answers_only_for_the_peer_it_was_made_for() {
    let flow =
        Flow { kind: FLOW_REDIRECTED, actual: Endpoint { address: v4(127, 1, 1, 5), port: 15001 }, ..Flow::default() };
    assert!(speaks_of(&flow, &v4(127, 1, 1, 5), 15001));
    assert!(!speaks_of(&flow, &v4(127, 1, 1, 6), 15001));
    assert!(!speaks_of(&flow, &v4(127, 1, 1, 5), 15002));
}

#[test]
fn what_is_known_of_a_destination_expires() {
    let open = Reach { until_ns: 100, state: REACH_OPEN, errno: 0 };
    assert_eq!(reach(Some(open), 99), open);
    assert_eq!(reach(Some(open), 100), Reach::default());
    assert_eq!(reach(None, 1), Reach::default());
}

#[test]
fn a_held_connection_is_tried_as_long_as_linux_would() {
    assert_eq!(syn_patience_ms(6), 127_000);
    assert_eq!(syn_patience_ms(2), 7_000);
    assert_eq!(syn_patience_ms(1), 3_000);
    assert_eq!(syn_patience_ms(0), 1_000);
    assert_eq!(syn_patience_ms(127), 127_000);
}
