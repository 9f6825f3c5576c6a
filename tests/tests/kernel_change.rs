//! What changes under traffic between nodes: certificates that are replaced, addresses that are given to others.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::Read,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use mesh_agent::model::{PodState, Reason};
use mesh_tests::{
    App, Cluster, Cross, Pod,
    agent::kernel_tier,
    eventually, manifest, require,
    socket::{connect, connect_here, exchange, finish},
    wait::within,
};

/// How often a workload's certificate is replaced in the test, at least.
const ROTATIONS: usize = 3;

/// How often the agent has put a certificate in use.
fn rotations(log: &str) -> usize {
    log.lines().filter(|line| line.contains("certificate in use")).count()
}

#[test]
fn certificates_are_replaced_under_load_and_no_request_fails() {
    if !require("kernel", kernel_tier) {
        return;
    }
    // Replaced every five seconds or so.
    let cross = Cross::with(&[("mode", "strict")], &["--certificate-lifetime", "10s"]);
    let _app = App::echo(&cross.server, 8080);
    let stop = AtomicBool::new(false);
    let requests = AtomicU64::new(0);
    let kept = connect(&cross.client, cross.server.at(8080)).unwrap();
    std::thread::scope(|scope| {
        let load: Vec<_> = [cross.server.at(8080), cross.server.at6(8080)]
            .into_iter()
            .map(|to| {
                let (stop, requests, client) = (&stop, &requests, &cross.client);
                scope.spawn(move || {
                    client.run(|| {
                        while !stop.load(SeqCst) {
                            let stream = connect_here(to)?;
                            for _ in 0..3 {
                                exchange(&stream, "not one is lost")?;
                                requests.fetch_add(1, SeqCst);
                            }
                            finish(stream)?;
                        }
                        std::io::Result::Ok(())
                    })
                })
            })
            .collect();
        within(Duration::from_mins(1), "certificates are replaced some times", || {
            exchange(&kept, "open all the while").unwrap();
            let failed = load.iter().any(std::thread::ScopedJoinHandle::is_finished);
            let enough = cross.agents().iter().all(|agent| rotations(&agent.log()) > ROTATIONS);
            (failed || enough).then_some(())
        });
        stop.store(true, SeqCst);
        for thread in load {
            thread.join().unwrap().expect("no request fails");
        }
    });
    eprintln!("{} requests during {ROTATIONS} rotations", requests.load(SeqCst));
    finish(kept).unwrap();
    let (client, server) = (cross.near.settled("client"), cross.far.settled("server"));
    assert_eq!((client.outbound.failed, server.inbound.failed), (0, 0));
    assert_eq!(client.outbound.total, server.inbound.total);
    assert!(requests.load(SeqCst) > 100);
    cross.assert_all_accounted();
}

/// Who has the address in turn.
const OWNERS: [&str; 2] = ["blue", "green"];
/// How long the address goes from hand to hand, unless [`REUSES`] says how often.
const REUSE_FOR: Duration = Duration::from_mins(1);
/// Names how often the address goes to another one: a thousand times take five minutes or so on a quiet machine.
const REUSES: &str = "MESH_TEST_REUSES";
/// Time between the end of a request and the next one: who is refused is refused at once.
const BREATH: Duration = Duration::from_millis(2);
/// Last number of the address.
const REUSED: u8 = 40;

/// What traffic needs to know to judge an answer: the rounds that the client's agent is being told of, and has been told
/// of. The owner of round n is `OWNERS[n % 2]`.
#[derive(Default)]
struct Rounds {
    announced: AtomicUsize,
    in_force: AtomicUsize,
}

/// What came of requests.
#[derive(Debug, Default)]
struct Answers {
    right: AtomicU64,
    none: AtomicU64,
    wrong: AtomicU64,
}

/// Asks whoever has the address for its name, and judges the answer: it must be of an owner that the client's agent may
/// have thought of at some time between the beginning and the end of the request.
fn ask(to: SocketAddr, rounds: &Rounds, answers: &Answers) -> Option<String> {
    let first = rounds.in_force.load(SeqCst);
    let name = || {
        let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let mut name = String::new();
        stream.read_to_string(&mut name).ok()?;
        (!name.is_empty()).then_some(name)
    };
    let name = name();
    let last = rounds.announced.load(SeqCst);
    let verdict = match &name {
        None => &answers.none,
        Some(name) if (first..=last).any(|round| name == OWNERS[round % 2]) => &answers.right,
        Some(_) => &answers.wrong,
    };
    verdict.fetch_add(1, SeqCst);
    name
}

/// An app that says its pod's name. Its sockets end with it: so does the pod's namespace.
fn app(pod: &Pod, name: &'static str) -> App {
    App::named(pod, 8080, name)
}

/// Connections to the former owner are open, pooled, resumable and under way each time that the address goes to the other
/// one. A pod is made, told of and unmade in a third of a second or so: it is done as often as fits a minute.
#[test]
fn an_address_that_is_reused_never_answers_for_its_former_owner() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cluster = Cluster::new();
    let client = cluster.one.pod("client");
    let mut pod = cluster.two.pod_at(OWNERS[0], REUSED);
    let manifest = |pod: &Pod| manifest::pods(&[("mesh", "enabled"), ("mode", "strict")], &[&client, pod]);
    cluster.write("pods.yaml", &manifest(&pod));
    let [near, far] = cluster.nodes().map(|node| node.start_with(&["--connect-timeout=1s"]));
    let (rounds, answers) = (Rounds::default(), Answers::default());
    let mut server = Some(app(&pod, OWNERS[0]));
    let to = pod.at(8080);
    let ask_once = || client.run(|| ask(to, &rounds, &answers));
    let mut done = 0;
    std::thread::scope(|scope| {
        let _going_on = [(); 2].map(|()| {
            let (going_on, stop) = mpsc::channel::<()>();
            let (client, rounds, answers) = (&client, &rounds, &answers);
            scope.spawn(move || {
                client.run(move || {
                    while stop.recv_timeout(BREATH) == Err(RecvTimeoutError::Timeout) {
                        ask(to, rounds, answers);
                    }
                });
            });
            going_on
        });
        eventually("the first owner answers", || (ask_once()? == OWNERS[0]).then_some(()));
        let started = Instant::now();
        let wanted: Option<usize> = std::env::var(REUSES).ok().map(|count| count.parse().expect(REUSES));
        while wanted.map_or(started.elapsed() < REUSE_FOR, |wanted| done < wanted) {
            let round = done + 1;
            let (owner, old) = (OWNERS[round % 2], Arc::clone(&pod));
            // The client's agent hears first: the old owner is there still, and must not be taken for the new one.
            rounds.announced.store(round, SeqCst);
            let described = |name: &str| {
                let path = old.namespace.path().display().to_string();
                let text = manifest::pod("shop", name, &old.addresses(), Some(&old.node), &[("netns", &path)]);
                manifest::pods(&[("mesh", "enabled"), ("mode", "strict")], &[&client]) + &text
            };
            near.after(|| cluster.one.write("pods.yaml", &described(owner)));
            rounds.in_force.store(round, SeqCst);
            if let Some(name) = ask_once() {
                panic!("round {round}: {name} answered where {owner} was expected, and was not there yet");
            }
            // Then it is replaced, as it happens in a cluster: the pod goes, another comes.
            drop(server.take());
            cluster.two.namespace.batch(&format!("link del veth{REUSED}\n"));
            drop(old);
            pod = cluster.two.pod_at(owner, REUSED);
            cluster.two.namespace.batch("neigh flush dev br0\n");
            server = Some(app(&pod, owner));
            far.after(|| cluster.two.write("pods.yaml", &manifest(&pod)));
            within(Duration::from_secs(20), &format!("round {round}: {owner} answers"), || {
                (ask_once()? == owner).then_some(())
            });
            done = round;
        }
    });
    eprintln!("the address was reused {done} times: {answers:?}");
    assert_eq!(answers.wrong.load(SeqCst), 0, "{answers:?}");
    assert!(done >= 10 && answers.right.load(SeqCst) > 2 * done as u64, "{done}: {answers:?}");
    far.await_state(OWNERS[done % 2], PodState::Armed);
    assert!(near.reason(Reason::PeerUnexpected) > 0, "others were met, and sent away: {:?}", near.status().reasons);
    drop(server);
}
