//! In and out of the mesh, live: nobody notices, and it is quick.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use mesh_agent::model::PodState;
use mesh_tests::{
    App, Pair,
    agent::kernel_tier,
    eventually, require,
    socket::{connect, exchange, finish, round_trip},
};

/// Toggles under a loop of new connections and one that stays.
fn toggle_under_traffic(pair: &Pair) {
    let _app = App::echo(&pair.server, 8080);
    let to = pair.server.at(8080);
    let (stop, done, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let looped = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                match round_trip(&pair.client, to) {
                    Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                    Err(error) => {
                        eprintln!("a new connection failed: {error}");
                        failed.fetch_add(1, Ordering::Relaxed)
                    }
                };
            }
        });
        let kept = scope.spawn(|| {
            let stream = connect(&pair.client, to).unwrap();
            while !stop.load(Ordering::Relaxed) {
                exchange(&stream, "still here").unwrap();
            }
            finish(stream).unwrap();
        });
        for (mesh, state) in [("disabled", PodState::Off), ("enabled", PodState::Armed)].repeat(4) {
            let before = done.load(Ordering::Relaxed);
            pair.node.write_pods(&[("mesh", mesh)], &[&pair.client, &pair.server]);
            // Off is only shown once the last connection has ended.
            let reached = |now| now == state || state == PodState::Off && now == PodState::Draining;
            eventually("the toggle is in force", || reached(pair.agent.pod("client").state).then_some(()));
            eventually("traffic goes on", || (done.load(Ordering::Relaxed) > before + 20).then_some(()));
        }
        stop.store(true, Ordering::Relaxed);
        looped.join().unwrap();
        kept.join().expect("the open connection is not disturbed");
    });
    assert_eq!(failed.load(Ordering::Relaxed), 0, "of {} connections", done.load(Ordering::Relaxed));
    pair.agent.settled("client");
    pair.agent.assert_all_accounted();
    assert!(pair.agent.status().healthy, "{:?}", pair.agent.status().problems);
}

#[test]
fn toggling_disturbs_no_relayed_connection() {
    if require("kernel", kernel_tier) {
        toggle_under_traffic(&Pair::relayed());
    }
}

#[test]
fn toggling_disturbs_no_direct_connection() {
    if require("kernel", kernel_tier) {
        toggle_under_traffic(&Pair::direct());
    }
}

/// What of the client's connections was captured: the mark of the mesh.
fn captured(pair: &Pair) -> u64 {
    let counters = pair.agent.pod("client").counters;
    counters["out_redirected"] + counters["out_direct"]
}

#[test]
fn a_toggle_is_in_force_soon_after_the_file_changes() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    // The faster one of each kind: on a busy machine the other says how busy it is.
    let mut fastest = [Duration::MAX; 2];
    for enabled in [false, true, false, true] {
        let started = Instant::now();
        pair.node.write_pods(&[("mesh", if enabled { "enabled" } else { "disabled" })], &[&pair.client, &pair.server]);
        // Seen by what happens to connections, not by what is said about them.
        eventually("connections take the other way", || {
            let before = captured(&pair);
            round_trip(&pair.client, pair.server.at(8080)).unwrap();
            ((captured(&pair) > before) == enabled).then_some(())
        });
        let took = started.elapsed();
        eprintln!("enabled={enabled} in force after {} ms", took.as_millis());
        fastest[usize::from(enabled)] = fastest[usize::from(enabled)].min(took);
    }
    assert!(fastest.iter().all(|took| *took < Duration::from_secs(1)), "{fastest:?}");
}

#[test]
fn a_pod_is_toggled_apart_from_its_namespace() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    let namespace = mesh_tests::manifest::namespace(mesh_tests::node::NAMESPACE, &[("mesh", "disabled")]);
    let pods = pair.client.manifest(&[("mesh", "enabled")]) + &pair.server.manifest(&[]);
    pair.agent.after(|| pair.node.write("pods.yaml", &(namespace + &pods)));
    pair.agent.await_state("server", PodState::Off);
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    let status = pair.agent.status();
    assert!(!status.namespaces[0].enrolled);
    assert_eq!(pair.agent.settled("client").outbound.total, 1);
    assert_eq!(pair.agent.pod("server").captured, 0);
}

#[test]
fn a_pod_that_is_created_later_is_captured() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    let late = pair.node.pod("late");
    pair.node.write("late.yaml", &late.manifest(&[]));
    pair.agent.await_state("late", PodState::Armed);
    round_trip(&late, pair.server.at(8080)).unwrap();
    assert_eq!(pair.agent.settled("late").outbound.total, 1);
    pair.node.remove("late.yaml");
    eventually("it is forgotten", || {
        pair.agent.status().pods.iter().all(|pod| &*pod.name.name != "late").then_some(())
    });
    round_trip(&late, pair.server.at(8080)).unwrap();
    let pods: Vec<_> = pair.agent.status().pods.into_iter().map(|pod| pod.name.name).collect();
    assert_eq!(pods.len(), 2, "{pods:?}");
}
