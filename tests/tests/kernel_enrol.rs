//! Two nodes that learn at different moments that pods join the mesh or leave it: no connection fails for that.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use mesh_agent::model::{PodState, Reason};
use mesh_tests::{
    Agent, App, Cross, Node,
    agent::kernel_tier,
    eventually, manifest, require,
    socket::{connect, exchange, finish, round_trip},
};

const TOGGLES: usize = 24;

/// The manifests of a node in which the server is enrolled or not; the client as well, or always.
fn write(cross: &Cross, node: &Node, is_enrolled: bool, together: bool) {
    let mesh = [("mesh", if is_enrolled { "enabled" } else { "disabled" })];
    let text = if together {
        manifest::pods(&mesh, &[&cross.client, &cross.server])
    } else {
        manifest::pods(&[("mesh", "enabled")], &[&cross.client]) + &cross.server.manifest(&mesh)
    };
    node.write("pods.yaml", &text);
}

fn waits(agent: &Agent) -> u64 {
    agent.status().workers.iter().map(|worker| worker.peer_waits).sum()
}

#[test]
fn whoever_learns_first_no_connection_fails() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    let _app = App::echo(&cross.server, 8080);
    let to = cross.server.at(8080);
    let (is_over, count) = (AtomicBool::new(false), Arc::new(AtomicU64::new(0)));
    let mut kept = Vec::new();
    thread::scope(|scope| {
        let load = || {
            while !is_over.load(Ordering::Relaxed) {
                round_trip(&cross.client, to).unwrap_or_else(|error| panic!("after {count:?}: {error}"));
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        let loads = [scope.spawn(load), scope.spawn(load)];
        for toggle in 0..TOGGLES {
            let (is_enrolled, near_first, together) = (toggle % 2 == 1, toggle % 4 < 2, toggle % 8 < 4);
            let far = || {
                write(&cross, &cross.cluster.two, is_enrolled, together);
                // It is not off as long as it has connections.
                let is_armed = || cross.far.pod("server").state == PodState::Armed;
                eventually("the server's node knows", || (is_armed() == is_enrolled).then_some(()));
            };
            let near = || cross.near.after(|| write(&cross, &cross.cluster.one, is_enrolled, together));
            if near_first {
                near();
                far();
            } else {
                far();
                near();
            }
            let before = count.load(Ordering::Relaxed);
            eventually("connections go on", || (count.load(Ordering::Relaxed) > before + 4).then_some(()));
            let open = connect(&cross.client, to).unwrap();
            exchange(&open, "opened").unwrap();
            kept.push(open);
        }
        is_over.store(true, Ordering::Relaxed);
        // A connection that failed is a panic there.
        for load in loads {
            load.join().unwrap();
        }
    });
    for (toggle, open) in kept.into_iter().enumerate() {
        exchange(&open, "as before").and_then(|()| finish(open)).unwrap_or_else(|error| panic!("{toggle}: {error}"));
    }
    cross.assert_all_accounted();
}

#[test]
fn a_connection_waits_for_the_agent_of_the_other_node() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    let _app = App::echo(&cross.server, 8080);
    let to = cross.server.at(8080);
    let capture = cross.cluster.capture();
    let waiting = |text: &'static str, then: &dyn Fn()| {
        write(&cross, &cross.cluster.two, false, false);
        cross.far.await_state("server", PodState::Off);
        let before = waits(&cross.near);
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                let stream = connect(&cross.client, to).unwrap();
                exchange(&stream, text).unwrap();
                finish(stream).unwrap();
            });
            eventually("it waits", || (waits(&cross.near) > before).then_some(()));
            then();
            client.join().unwrap();
        });
    };
    waiting("until it is there", &|| {
        write(&cross, &cross.cluster.two, true, false);
        cross.far.await_state("server", PodState::Armed);
    });
    capture.assert_no_clear("until it is there");
    waiting("until nobody is expected", &|| {
        cross.near.after(|| write(&cross, &cross.cluster.one, false, false));
    });
    capture.assert_clear("until nobody is expected");
    assert!(!cross.near.status().reasons.contains_key(&Reason::PeerAbsent));
    cross.assert_all_accounted();
}

#[test]
fn a_pod_that_leaves_takes_what_waits_along() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    let _app = App::echo(&cross.server, 8080);
    let to = cross.server.at(8080);
    write(&cross, &cross.cluster.two, false, true);
    cross.far.await_state("server", PodState::Off);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| round_trip(&cross.client, to))).collect();
        eventually("they wait", || (waits(&cross.near) == 8).then_some(()));
        // Their own pod is no longer captured, either, and its listeners close in a moment.
        cross.near.after(|| write(&cross, &cross.cluster.one, false, true));
        for client in clients {
            client.join().unwrap().unwrap();
        }
    });
    cross.near.await_state("client", PodState::Off);
}

#[test]
fn who_never_comes_is_not_waited_for_long() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    let app = App::echo(&cross.server, 8080);
    write(&cross, &cross.cluster.two, false, false);
    cross.far.await_state("server", PodState::Off);
    let capture = cross.cluster.capture();
    for address in [cross.server.at(8080), cross.server.at6(8080)] {
        let error = connect(&cross.client, address).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED), "{error}");
    }
    assert_eq!(cross.near.status().reasons.get(&Reason::PeerAbsent), Some(&2));
    assert!(app.try_seen().is_none());
    assert!(capture.sent_to(cross.server.at(8080)).is_empty(), "nothing goes in the clear instead");
}
