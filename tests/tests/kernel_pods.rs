//! Pods are found in a real cgroup tree, with real processes in real network namespaces.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    collections::HashMap,
    path::Path,
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use mesh_agent::{
    net::netns::{Netns, NetnsId},
    node::{Event, Finder},
};
use mesh_tests::{
    kubelet::{Driver, Kubelet, PodCgroup, uid},
    node::Namespace,
    require,
    wait::PATIENCE,
};

/// Whether there can be cgroups and namespaces here.
fn tier() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root".to_owned());
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    let has_cgroup = mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2"));
    if has_cgroup { Ok(()) } else { Err("no cgroup v2 is mounted".to_owned()) }
}

/// A finder on a thread of its own, as long as its events are read.
fn find(root: &Path) -> Receiver<(Instant, Event)> {
    let (tell, told) = channel();
    let root = root.to_owned();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (events, mut found) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(Finder::new(&root, events).unwrap().run());
            while let Some(event) = found.recv().await {
                if tell.send((Instant::now(), event)).is_err() {
                    return;
                }
            }
        });
    });
    told
}

fn next(events: &Receiver<(Instant, Event)>) -> Event {
    events.recv_timeout(PATIENCE).expect("an event comes").1
}

fn id_of(namespace: &Namespace) -> NetnsId {
    Netns::open(&namespace.path()).unwrap().id()
}

/// The namespace of the first process in a cgroup.
fn network_in(cgroup: &Path) -> Option<NetnsId> {
    let pids = std::fs::read_to_string(cgroup.join("cgroup.procs")).ok()?;
    Some(Netns::of_process(pids.lines().next()?).ok()?.id())
}

#[track_caller]
fn expect_found(events: &Receiver<(Instant, Event)>, uid: &str, namespace: &Namespace) {
    match next(events) {
        Event::Found { uid: found, netns } => {
            assert_eq!(found.as_str(), uid);
            assert_eq!(netns.id(), id_of(namespace));
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn expect_created(events: &Receiver<(Instant, Event)>, uid: &str, pod: &PodCgroup) {
    use std::os::unix::fs::MetadataExt;
    match next(events) {
        Event::Created { uid: created, cgroup } => {
            assert_eq!((created.as_str(), cgroup), (uid, pod.folder().metadata().unwrap().ino()));
        }
        other => panic!("{other:?}"),
    }
}

fn a_pod_lives(driver: Driver) {
    if !require("kernel", tier) {
        return;
    }
    let kubelet = Kubelet::new(driver);
    let events = find(kubelet.root());
    assert!(matches!(next(&events), Event::Settled));
    let (uid, network) = (uid(), Namespace::new("pod"));
    let mut pod = kubelet.pod(&uid);
    expect_created(&events, &uid, &pod);
    let sandbox = pod.container();
    pod.pause(&sandbox, Some(&network));
    expect_found(&events, &uid, &network);
    // An app comes, ends and comes again: nothing new.
    let app = pod.container();
    pod.run(&app, Some(&network), "sleep 1000");
    pod.stop(&app);
    let app = pod.container();
    pod.run(&app, Some(&network), "sleep 1000");
    // The kubelet makes a new sandbox: another namespace.
    pod.stop(&app);
    pod.stop(&sandbox);
    let another = Namespace::new("pod");
    let sandbox = pod.container();
    pod.pause(&sandbox, Some(&another));
    expect_found(&events, &uid, &another);
    // An app that makes a namespace of its own does not take the pod along.
    let app = pod.container();
    pod.run(&app, Some(&another), "unshare --net sleep 1000");
    mesh_tests::eventually("the app has left", || {
        let network = network_in(&app)?;
        (network != id_of(&another) && network != Netns::of_process("self").ok()?.id()).then_some(())
    });
    drop(pod);
    assert!(matches!(next(&events), Event::Gone { uid: gone } if gone.as_str() == uid));
}

#[test]
fn smoke_a_pod_is_found_with_the_cgroupfs_driver() {
    a_pod_lives(Driver::Cgroupfs);
}

#[test]
fn a_pod_is_found_with_the_systemd_driver_below_another_slice() {
    a_pod_lives(Driver::Systemd);
}

#[test]
fn a_pod_on_the_nodes_network_is_told_apart() {
    if !require("kernel", tier) {
        return;
    }
    let kubelet = Kubelet::new(Driver::Cgroupfs);
    let events = find(kubelet.root());
    assert!(matches!(next(&events), Event::Settled));
    let mut pod = kubelet.pod(&uid());
    assert!(matches!(next(&events), Event::Created { .. }));
    let sandbox = pod.container();
    pod.pause(&sandbox, None);
    assert!(matches!(next(&events), Event::OnHost { .. }));
}

#[test]
fn pods_that_were_there_before_are_found_at_once() {
    if !require("kernel", tier) {
        return;
    }
    let kubelet = Kubelet::new(Driver::Systemd);
    let (uid, network) = (uid(), Namespace::new("pod"));
    let mut pod = kubelet.pod(&uid);
    let sandbox = pod.container();
    pod.pause(&sandbox, Some(&network));
    mesh_tests::eventually("the sandbox runs", || (network_in(&sandbox)? == id_of(&network)).then_some(()));
    let events = find(kubelet.root());
    expect_created(&events, &uid, &pod);
    expect_found(&events, &uid, &network);
    assert!(matches!(next(&events), Event::Settled));
}

#[test]
fn two_hundred_pods_at_once_are_all_found() {
    const PODS: usize = 200;
    if !require("kernel", tier) {
        return;
    }
    let networks: Vec<Namespace> = (0..PODS).map(|_| Namespace::new("pod")).collect();
    let kubelet = Kubelet::new(Driver::Systemd);
    let events = find(kubelet.root());
    assert!(matches!(next(&events), Event::Settled));
    let mut expected = HashMap::new();
    let mut pods = Vec::new();
    for network in &networks {
        let uid = uid();
        let mut pod = kubelet.pod(&uid);
        let sandbox = pod.container();
        pod.pause(&sandbox, Some(network));
        expected.insert(uid, (id_of(network), sandbox));
        pods.push(pod);
    }
    let (mut found, mut waits) = (0, Vec::new());
    while found < PODS {
        let (at, event) = events.recv_timeout(PATIENCE).expect("an event comes");
        if let Event::Found { uid, netns } = event {
            let (network, sandbox) = &expected[uid.as_str()];
            assert_eq!(netns.id(), *network);
            let born = sandbox.metadata().unwrap().modified().unwrap().elapsed().unwrap();
            waits.push(born.saturating_sub(at.elapsed()));
            found += 1;
        }
    }
    waits.sort();
    eprintln!("from the sandbox's cgroup to its namespace: median {:?}, most {:?}", waits[PODS / 2], waits[PODS - 1]);
    assert!(waits[PODS / 2] < Duration::from_secs(1), "{waits:?}");
    drop(pods);
    let mut gone = 0;
    while gone < PODS {
        gone += usize::from(matches!(next(&events), Event::Gone { .. }));
    }
}
