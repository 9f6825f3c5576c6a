use std::{net::IpAddr, sync::Arc};

use super::*;
use crate::model::{Audit, Direction, Interval, ObjectName, Peer, PlaintextReason, PodState, Reason, Shares, Volume};

/// A whole minute.
const NOON: u64 = 1_800_000_000;

fn name(pod: &str) -> ObjectName {
    ObjectName::new("shop", pod)
}

fn key(pod: &str, last: u32) -> FlowKey {
    FlowKey {
        direction: Direction::Outbound,
        pod: name(pod),
        peer: Peer::Address(IpAddr::from((0xc000_0200 + last).to_be_bytes())),
        port: 443,
        reason: PlaintextReason::DestinationUnknown,
    }
}

fn sample(mutual: u64, local: u64, unseen: [u64; UNSEEN.len()]) -> PodSample {
    let volume = |connections| Volume { connections, bytes: connections * 10 };
    let shares = Shares { mutual: volume(mutual), local: volume(local), plaintext: Volume::default() };
    PodSample { instance: 1, armed: true, shares, unseen, unseen_before: [0; UNSEEN.len()] }
}

fn report(ledger: &mut Ledger, now: u64, period: u64) -> Audit {
    ledger.sample(now, std::iter::empty());
    ledger.report(now, period, "node-1", "1.0", &[])
}

fn move_bytes(flow: &Flow, from_pod: u64, to_pod: u64) {
    flow.from_pod.add(from_pod);
    flow.to_pod.add(to_pod);
}

#[test]
fn a_flow_is_in_the_report_as_long_as_the_period_reaches_back_to_it() {
    let (shard, feed) = shard();
    let mut ledger = Ledger::new(vec![feed], NOON);
    let flow = shard.open(key("cart", 1), (None, None), || NOON + 5);
    move_bytes(&flow, 100, 2000);
    flow.closed.add(1);
    drop(flow);
    let audit = report(&mut ledger, NOON + 10, 600);
    let [row] = audit.flows.as_slice() else { panic!("{:?}", audit.flows) };
    assert_eq!((row.connections, row.open, row.from_pod_bytes, row.to_pod_bytes), (1, 0, 100, 2000));
    assert_eq!((row.first_seen, row.last_seen), (NOON + 5, NOON + 10));
    assert_eq!(audit.shares.plaintext, Volume { connections: 1, bytes: 2100 });
    assert_eq!(report(&mut ledger, NOON + 600, 600).flows.len(), 1);
    assert_eq!(report(&mut ledger, NOON + 720, 600).flows.len(), 0, "not in the last ten minutes");
    assert_eq!(report(&mut ledger, NOON + 720, 3600).flows.len(), 1);
    assert_eq!(report(&mut ledger, NOON + 3700, 100_000).flows.len(), 0, "an hour is the most");
}

#[test]
fn bytes_fall_into_their_minute_and_an_open_connection_stays() {
    let (shard, feed) = shard();
    let mut ledger = Ledger::new(vec![feed], NOON);
    let flow = shard.open(key("cart", 1), (None, None), || NOON);
    for minute in 0..120 {
        flow.from_pod.add(1);
        ledger.sample(NOON + minute * 60, std::iter::empty());
    }
    let now = NOON + 119 * 60;
    let row = |audit: Audit| audit.flows.first().map(|row| (row.connections, row.open, row.from_pod_bytes));
    assert_eq!(row(report(&mut ledger, now, 3600)), Some((0, 1, 61)));
    assert_eq!(row(report(&mut ledger, now, 60)), Some((0, 1, 2)));
    assert_eq!(row(report(&mut ledger, now + 7200, 3600)), Some((0, 1, 0)), "silent, and still there");
    flow.closed.add(1);
    assert_eq!(row(report(&mut ledger, now + 7201, 3600)), None);
}

#[test]
fn workers_are_added_up() {
    let ((one, feed_one), (two, feed_two)) = (shard(), shard());
    let mut ledger = Ledger::new(vec![feed_one, feed_two], NOON);
    move_bytes(&one.open(key("cart", 1), (None, None), || NOON), 1, 2);
    move_bytes(&two.open(key("cart", 1), (None, None), || NOON - 7), 10, 20);
    let audit = report(&mut ledger, NOON, 3600);
    let [row] = audit.flows.as_slice() else { panic!("{:?}", audit.flows) };
    assert_eq!((row.connections, row.from_pod_bytes, row.to_pod_bytes), (2, 11, 22));
}

#[test]
fn too_many_flows_are_summed_up_and_nothing_of_them_is_lost() {
    let (shard, feed) = shard();
    let mut ledger = Ledger::new(vec![feed], NOON);
    for peer in 0..5000 {
        let flow = shard.open(key(if peer % 2 == 0 { "cart" } else { "web" }, peer), (None, None), || NOON);
        move_bytes(&flow, 1, 1);
        flow.closed.add(1);
    }
    let audit = report(&mut ledger, NOON, 3600);
    assert_eq!(audit.flows.iter().map(|row| row.connections).sum::<u64>(), 5000);
    assert_eq!(audit.shares.plaintext, Volume { connections: 5000, bytes: 10_000 });
    assert!(audit.flows.len() < 1100, "{}", audit.flows.len());
    let others: Vec<_> = audit.flows.iter().filter(|row| row.peer == Peer::Others).collect();
    assert_eq!(others.iter().map(|row| row.pod.clone()).collect::<Vec<_>>().len(), 2, "one row per pod");
    assert_eq!(audit.summed_up, others.iter().map(|row| row.connections).sum::<u64>());
    // Once they are an hour old there is room again.
    let later = NOON + 4000;
    shard.open(key("cart", 9999), (None, None), || later);
    let fresh = report(&mut ledger, later, 60);
    assert_eq!(fresh.flows.first().map(|row| row.peer.clone()), Some(key("cart", 9999).peer));
}

#[test]
fn more_rows_than_are_kept_of_all_workers_are_summed_up_too() {
    let (shards, feeds): (Vec<_>, Vec<_>) = (0..4).map(|_| shard()).unzip();
    let mut ledger = Ledger::new(feeds, NOON);
    for (worker, shard) in shards.iter().enumerate() {
        for peer in 0..1000 {
            shard.open(key("cart", worker as u32 * 1000 + peer), (None, None), || NOON).closed.add(1);
        }
    }
    let audit = report(&mut ledger, NOON, 3600);
    assert_eq!(audit.flows.iter().map(|row| row.connections).sum::<u64>(), 4000);
    assert!(audit.flows.len() <= 2049 && audit.summed_up == 4000 - 2048, "{} {}", audit.flows.len(), audit.summed_up);
}

#[test]
fn pods_count_from_where_they_were_taken_over() {
    let (_shard, feed) = shard();
    let mut ledger = Ledger::new(vec![feed], NOON);
    let cart = name("cart");
    let before = PodSample { unseen_before: [0, 7, 0, 0, 0, 0, 0], ..sample(3, 4, [1, 0, 0, 0, 0, 0, 0]) };
    ledger.sample(NOON, [(&cart, before)].into_iter());
    ledger.sample(NOON + 1, [(&cart, PodSample { ..before })].into_iter());
    let audit = ledger.report(NOON + 1, 3600, "n", "v", &[(cart.clone(), PodState::Armed)]);
    assert_eq!(audit.shares.mutual, Volume { connections: 3, bytes: 30 });
    assert_eq!(audit.shares.local, Volume { connections: 4, bytes: 40 });
    let unseen: Vec<_> = audit.unobserved.iter().map(|row| (row.reason, row.connections, row.before_start)).collect();
    assert_eq!(unseen, [(PlaintextReason::Excluded, 1, false), (PlaintextReason::AgentUnavailable, 7, true)]);

    // Another incarnation counts from zero, whether or not it is noticed as such.
    for instance in [2, 2] {
        let again = PodSample { instance, ..sample(1, 0, [0; UNSEEN.len()]) };
        ledger.sample(NOON + 2, [(&cart, again)].into_iter());
    }
    ledger.sample(NOON + 3, [(&cart, PodSample { instance: 2, ..sample(0, 1, [0; UNSEEN.len()]) })].into_iter());
    let audit = ledger.report(NOON + 3, 3600, "n", "v", &[]);
    assert_eq!((audit.shares.mutual.connections, audit.shares.local.connections), (4, 5));
    // An hour later it is of the past, but for what nobody knows the time of.
    ledger.sample(NOON + 3700, [(&cart, PodSample { instance: 2, ..before })].into_iter());
    let audit = ledger.report(NOON + 3700, 60, "n", "v", &[]);
    assert_eq!(audit.shares.mutual.connections, 3);
}

#[test]
fn coverage_has_gaps_where_a_pod_was_not_captured() {
    let (_shard, feed) = shard();
    let mut ledger = Ledger::new(vec![feed], NOON);
    let (cart, off) = (name("cart"), name("off"));
    let armed = sample(0, 0, [0; UNSEEN.len()]);
    ledger.sample(NOON, [(&cart, armed)].into_iter());
    ledger.sample(NOON + 30, [(&cart, PodSample { armed: false, ..armed })].into_iter());
    ledger.sample(NOON + 60, [(&cart, armed)].into_iter());
    let pods = [(off.clone(), PodState::Off), (cart.clone(), PodState::Armed)];
    let coverage = ledger.report(NOON + 61, 3600, "n", "v", &pods).coverage;
    let gap = vec![Interval { from: NOON, until: Some(NOON + 30) }, Interval { from: NOON + 60, until: None }];
    assert_eq!(coverage.iter().map(|row| row.pod.clone()).collect::<Vec<_>>(), [cart.clone(), off]);
    assert_eq!(coverage.iter().map(|row| row.observed.clone()).collect::<Vec<_>>(), [gap, Vec::new()]);
    // A pod that is gone is named as long as something is known of it.
    ledger.sample(NOON + 70, std::iter::empty());
    assert_eq!(ledger.report(NOON + 70, 3600, "n", "v", &[]).coverage.len(), 1);
    ledger.sample(NOON + 3700, std::iter::empty());
    assert_eq!(ledger.report(NOON + 3700, 3600, "n", "v", &[]).coverage.len(), 0);
}

fn refusal(from: u32) -> RefusalKey {
    RefusalKey {
        direction: Direction::Inbound,
        pod: name("payments"),
        source_identity: Some(Arc::new("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap())),
        source_address: Some(IpAddr::from(from.to_be_bytes())),
        destination: Peer::Pod(name("payments")),
        destination_identity: None,
        port: 8080,
        reason: Reason::PlaintextRefused,
        decided_by: Some("PeerAuthentication shop/default".into()),
    }
}

#[test]
fn refusals_are_counted_latest_first_and_bounded() {
    let (shard, feed) = shard();
    let mut ledger = Ledger::new(vec![feed], NOON);
    shard.refuse(refusal(1), || NOON);
    shard.refuse(refusal(1), || NOON);
    ledger.sample(NOON, std::iter::empty());
    shard.refuse(refusal(2), || NOON + 9);
    let refused = report(&mut ledger, NOON + 10, 60).refused;
    let short: Vec<_> = refused.iter().map(|row| (row.count, row.first_seen, row.last_seen)).collect();
    assert_eq!(short, [(1, NOON + 9, NOON + 10), (2, NOON, NOON)]);
    assert_eq!(refused[0].decided_by.as_deref(), Some("PeerAuthentication shop/default"));
    for from in 0..10_000 {
        shard.refuse(refusal(from), || NOON + 20);
    }
    let refused = report(&mut ledger, NOON + 21, 60).refused;
    assert!(refused.len() <= 256, "{}", refused.len());
    assert!(refused.iter().any(|row| row.source_address.is_none() && row.count > 9000), "the rest is summed up");
}
