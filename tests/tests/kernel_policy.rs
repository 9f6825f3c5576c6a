//! Policies on one node: who is refused, that nothing remembers what is no longer allowed, and that what is open ends.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use mesh_agent::model::{AuthorizationStatus, Mode, Outcome, PodState, Reason, Severity};
use mesh_tests::{
    App, Pair, Pod,
    agent::kernel_tier,
    eventually, manifest,
    node::{NAMESPACE, NODE_NAME},
    require,
    socket::{self, connect, exchange, finish, round_trip},
    wait::within,
};

/// How soon a change has to have ended what it forbids.
const SOON: Duration = Duration::from_secs(5);
const VIP: &str = "10.96.0.10:80";

/// Three pods with service accounts of their own names. Fields are dropped in this order.
struct Shop {
    intruder: Arc<Pod>,
    pair: Pair,
}

impl Shop {
    fn new(arguments: &[&str]) -> Self {
        let pair = Pair::new(arguments);
        let intruder = pair.node.pod("intruder");
        let shop = Self { intruder, pair };
        shop.pair.agent.after(|| shop.enrol(&[]));
        shop.pair.agent.await_state("intruder", PodState::Armed);
        shop
    }

    fn pods(&self) -> [&Pod; 3] {
        [&self.pair.client, &self.pair.server, &self.intruder]
    }

    fn enrol(&self, annotations: manifest::Annotations<'_>) {
        let mut all = vec![("mesh", "enabled")];
        all.extend_from_slice(annotations);
        let pods: String = self.pods().iter().map(|pod| with_account(pod, &pod.name)).collect();
        self.pair.node.write("pods.yaml", &(manifest::namespace(NAMESPACE, &all) + &pods));
    }

    /// Replaces the policies and waits until they are in force.
    fn policies(&self, text: &str) {
        self.pair.agent.after(|| self.pair.node.write("policy.yaml", text));
    }

    fn server(&self) -> SocketAddr {
        self.pair.server.at(8080)
    }

    fn authorizations(&self, outcome: Outcome) -> Vec<AuthorizationStatus> {
        let all = self.pair.agent.status().authorizations;
        all.into_iter().filter(|row| row.verdict.outcome == outcome).collect()
    }
}

/// The pod with the label `app` and another service account than that of its own name.
fn with_account(pod: &Pod, account: &str) -> String {
    let labels = format!("  labels:\n    app: {}\n  annotations:", pod.name);
    let (own, other) = (format!("serviceAccountName: {}\n", pod.name), format!("serviceAccountName: {account}\n"));
    pod.manifest(&[]).replace("  annotations:", &labels).replace(&own, &other)
}

/// An AuthorizationPolicy of the shop for the server; `spec` in flow style.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: {NAMESPACE}\n\
         spec: {{selector: {{matchLabels: {{app: server}}}}, {spec}}}\n---\n"
    )
}

fn from(account: &str) -> String {
    format!("rules: [{{from: [{{source: {{serviceAccounts: [{account}]}}}}]}}]")
}

/// Opens a connection that works.
fn open(pod: &Pod, to: SocketAddr) -> TcpStream {
    let stream = connect(pod, to).unwrap();
    exchange(&stream, "hello").unwrap();
    stream
}

/// Waits until what was refused is let in: the change may reach the worker a moment after the status.
fn is_let_in(pod: &Pod, to: SocketAddr) {
    within(SOON, "it is let in", || round_trip(pod, to).ok());
}

/// A refusal as connect() shows it, or as a reset where the connection was accepted before the agent asked.
fn is_refused(pod: &Pod, to: SocketAddr) {
    let error = round_trip(pod, to).expect_err("it is forbidden");
    assert!(matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset), "{error}");
}

/// Waits until the connection is aborted.
fn ends(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let error = stream.read(&mut [0; 1]).expect_err("it is aborted, not closed");
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted), "{error}");
}

fn direct_and_relayed(test: impl Fn(&Shop)) {
    for arguments in [&[][..], &["--direct=off"]] {
        let shop = Shop::new(arguments);
        test(&shop);
        shop.pair.agent.assert_all_accounted();
    }
}

#[test]
fn a_denied_service_account_is_refused_and_others_are_not() {
    if !require("kernel", kernel_tier) {
        return;
    }
    direct_and_relayed(|shop| {
        let _app = App::echo(&shop.pair.server, 8080);
        for to in [shop.server(), shop.pair.server.at6(8080)] {
            // Both know the way already, by a cached decision if there are any.
            for pod in [&shop.pair.client, &shop.intruder] {
                round_trip(pod, to).unwrap();
                round_trip(pod, to).unwrap();
            }
            shop.policies(&policy("no-intruders", &format!("action: DENY, {}", from("intruder"))));
            for _ in 0..3 {
                is_refused(&shop.intruder, to);
                round_trip(&shop.pair.client, to).unwrap();
            }
            shop.policies("");
            is_let_in(&shop.intruder, to);
        }
        let denied = shop.authorizations(Outcome::Denied);
        let [row] = denied.as_slice() else { panic!("{denied:?}") };
        assert_eq!(row.verdict.source.as_ref().unwrap().to_string(), "spiffe://cluster.local/ns/shop/sa/intruder");
        assert_eq!(row.verdict.destination.to_string(), "spiffe://cluster.local/ns/shop/sa/server");
        assert_eq!(row.verdict.object.as_ref().unwrap().to_string(), "shop/no-intruders");
        assert_eq!((row.verdict.reason, row.verdict.destination_port), (Reason::PolicyDenied, 8080));
        // What is refused again within a moment, the kernel refuses by itself.
        let by_kernel = shop.pair.agent.counter("intruder", "out_refused_upstream");
        assert!(row.count >= 4 && row.count + by_kernel >= 6, "{denied:?} {by_kernel}");
        assert_eq!(shop.pair.agent.reason(Reason::PolicyDenied), row.count);
        assert!(shop.pair.agent.log().contains("shop/no-intruders"), "it is logged");
    });
}

#[test]
fn one_object_locks_a_namespace_and_another_opens_it_for_one() {
    if !require("kernel", kernel_tier) {
        return;
    }
    direct_and_relayed(|shop| {
        let _app = App::echo(&shop.pair.server, 8080);
        let nothing = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nothing, namespace: shop}\n\
                       spec: {}\n---\n";
        shop.policies(nothing);
        is_refused(&shop.pair.client, shop.server());
        is_refused(&shop.intruder, shop.server());
        assert_eq!(shop.pair.agent.pod("server").mode, Mode::Strict, "closed without an agent too");
        shop.policies(&(nothing.to_owned() + &policy("client", &from("client"))));
        is_let_in(&shop.pair.client, shop.server());
        for _ in 0..3 {
            round_trip(&shop.pair.client, shop.server()).unwrap();
            is_refused(&shop.intruder, shop.server());
        }
        assert_eq!(shop.authorizations(Outcome::Denied)[0].verdict.reason, Reason::PolicyNoMatch);
    });
}

#[test]
fn a_service_leads_past_no_policy() {
    if !require("kernel", kernel_tier) {
        return;
    }
    direct_and_relayed(|shop| {
        let _app = App::echo(&shop.pair.server, 8080);
        let vip: SocketAddr = VIP.parse().unwrap();
        let slice = manifest::slice(NAMESPACE, "web", 8080, &[(shop.pair.server.v4.into(), Some(NODE_NAME))]);
        let service = manifest::service(NAMESPACE, "web", vip.ip(), vip.port(), "") + &slice;
        shop.pair.agent.after(|| shop.pair.node.write("service.yaml", &service));
        for pod in [&shop.pair.client, &shop.intruder] {
            round_trip(pod, vip).unwrap();
            round_trip(pod, vip).unwrap();
        }
        let open = [open(&shop.pair.client, vip), open(&shop.intruder, vip)];
        shop.policies(&policy("client", &from("client")));
        ends(&open[1]);
        exchange(&open[0], "still").unwrap();
        for _ in 0..3 {
            round_trip(&shop.pair.client, vip).unwrap();
            is_refused(&shop.intruder, vip);
        }
    });
}

#[test]
fn ports_and_blocks_are_told_apart() {
    if !require("kernel", kernel_tier) {
        return;
    }
    direct_and_relayed(|shop| {
        let _apps = [App::echo(&shop.pair.server, 8080), App::echo(&shop.pair.server, 8081)];
        let (open, closed) = (shop.pair.server.at(8080), shop.pair.server.at(8081));
        shop.policies(&policy("port", "rules: [{to: [{operation: {ports: ['8080']}}]}]"));
        for _ in 0..2 {
            round_trip(&shop.intruder, open).unwrap();
            is_refused(&shop.intruder, closed);
        }
        let block = format!("action: DENY, rules: [{{from: [{{source: {{ipBlocks: [{}]}}}}]}}]", shop.intruder.v4);
        shop.policies(&policy("block", &block));
        for _ in 0..2 {
            is_refused(&shop.intruder, open);
            round_trip(&shop.pair.client, open).unwrap();
            round_trip(&shop.intruder, shop.pair.server.at6(8080)).unwrap();
        }
    });
}

#[test]
fn a_change_ends_what_is_open_and_no_longer_allowed_and_nothing_else() {
    if !require("kernel", kernel_tier) {
        return;
    }
    direct_and_relayed(|shop| {
        let app = App::echo(&shop.pair.server, 8080);
        round_trip(&shop.pair.client, shop.server()).unwrap();
        round_trip(&shop.intruder, shop.server()).unwrap();
        let good = open(&shop.pair.client, shop.server());
        let bad: Vec<_> = (0..5).map(|_| open(&shop.intruder, shop.server())).collect();
        let bad6 = open(&shop.intruder, shop.pair.server.at6(8080));
        while app.try_seen().is_some() {}

        // What touches neither does nothing to them.
        shop.policies(&policy("other", &format!("action: DENY, {}", from("nobody"))));
        for stream in bad.iter().chain([&good, &bad6]) {
            exchange(stream, "still").unwrap();
        }
        shop.policies(&policy("no-intruders", &format!("action: DENY, {}", from("intruder"))));
        for stream in bad.iter().chain([&bad6]) {
            ends(stream);
        }
        exchange(&good, "undisturbed").unwrap();
        let reason = || (shop.pair.agent.reason(Reason::PolicyChanged) == 6).then_some(());
        within(SOON, "all are counted", reason);
        let ended = shop.authorizations(Outcome::Ended);
        assert_eq!((ended.len(), ended[0].count), (1, 6), "{ended:?}");
        assert_eq!(ended[0].verdict.object.as_ref().unwrap().to_string(), "shop/no-intruders");
        finish(good).unwrap();
        shop.pair.agent.settled("intruder");
    });
}

#[test]
fn the_server_learns_that_a_connection_was_ended() {
    if !require("kernel", kernel_tier) {
        return;
    }
    direct_and_relayed(|shop| {
        let (tell, told) = std::sync::mpsc::channel();
        let _app = App::new(shop.pair.server.listen(8080), move |mut stream| {
            stream.write_all(b"x")?;
            let result = stream.read(&mut [0; 1]);
            let _ = tell.send(result.as_ref().map(drop).map_err(std::io::Error::kind));
            result.map(drop)
        });
        let read = |mut stream: TcpStream| stream.read_exact(&mut [0; 1]).map(|()| stream).unwrap();
        drop(read(connect(&shop.pair.client, shop.server()).unwrap()));
        assert_eq!(told.recv_timeout(SOON), Ok(Ok(())));
        let stream = read(connect(&shop.pair.client, shop.server()).unwrap());
        shop.policies(&policy("nobody", ""));
        ends(&stream);
        assert_eq!(told.recv_timeout(SOON), Ok(Err(ErrorKind::ConnectionReset)));
    });
}

#[test]
fn another_service_account_is_another_caller() {
    if !require("kernel", kernel_tier) {
        return;
    }
    direct_and_relayed(|shop| {
        let _app = App::echo(&shop.pair.server, 8080);
        shop.policies(&policy("client", &from("client")));
        round_trip(&shop.pair.client, shop.server()).unwrap();
        let stream = open(&shop.pair.client, shop.server());
        let renamed = || {
            let pods = [("client", "demoted"), ("server", "server"), ("intruder", "client")];
            let pods = shop.pods().map(|pod| {
                let (_, account) = pods.iter().find(|(name, _)| *name == pod.name).unwrap();
                with_account(pod, account)
            });
            shop.pair
                .node
                .write("pods.yaml", &(manifest::namespace(NAMESPACE, &[("mesh", "enabled")]) + &pods.concat()));
        };
        shop.pair.agent.after(renamed);
        ends(&stream);
        for _ in 0..2 {
            is_refused(&shop.pair.client, shop.server());
            round_trip(&shop.intruder, shop.server()).unwrap();
        }
    });
}

#[test]
fn a_pod_that_left_the_mesh_is_nobody_and_what_it_opened_before_is_still_its_own() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let shop = Shop::new(&[]);
    let _app = App::echo(&shop.pair.server, 8080);
    round_trip(&shop.pair.client, shop.server()).unwrap();
    let stream = open(&shop.pair.client, shop.server());
    let leave = || {
        let client = shop.pair.client.manifest(&[("mesh", "disabled")]);
        let others = [&shop.pair.server, &shop.intruder].map(|pod| with_account(pod, &pod.name)).concat();
        shop.pair
            .node
            .write("pods.yaml", &(manifest::namespace(NAMESPACE, &[("mesh", "enabled")]) + &client + &others));
    };
    shop.pair.agent.after(leave);
    shop.pair.agent.await_state("client", PodState::Off);
    shop.policies(&policy("client", &from("client")));
    exchange(&stream, "still").unwrap();
    is_refused(&shop.pair.client, shop.server());
    shop.policies(&policy("nobody", ""));
    ends(&stream);
}

#[test]
fn a_pod_that_turns_strict_ends_the_plaintext_of_strangers_only() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let shop = Shop::new(&[]);
    let _apps = [App::echo(&shop.pair.server, 8080), App::echo(&shop.pair.server, 8081)];
    let stranger = shop.pair.node.pod("stranger");
    round_trip(&shop.pair.client, shop.server()).unwrap();
    let known = open(&shop.pair.client, shop.server());
    let plain = open(&stranger, shop.server());
    let excepted = open(&stranger, shop.pair.server.at(8081));
    shop.policies(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}, portLevelMtls: {8081: {mode: PERMISSIVE}}}\n",
    );
    ends(&plain);
    exchange(&known, "still").unwrap();
    exchange(&excepted, "still").unwrap();
    is_refused(&stranger, shop.server());
    round_trip(&stranger, shop.pair.server.at(8081)).unwrap();
    assert_eq!(shop.authorizations(Outcome::Ended)[0].verdict.source, None);
    assert_eq!(shop.authorizations(Outcome::Denied)[0].verdict.reason, Reason::PlaintextRefused);
}

#[test]
fn what_was_not_captured_is_left_alone() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let node = mesh_tests::Node::new();
    let (client, server) = (node.pod("client"), node.pod("server"));
    let _app = App::echo(&server, 8080);
    // Older than enrolment.
    let older = connect(&client, server.at(8080)).unwrap();
    exchange(&older, "hello").unwrap();
    node.enrol(&[&client, &server]);
    let agent = node.start();
    let from_node = node.namespace.run(|| socket::connect_here(server.at(8080))).unwrap();
    exchange(&from_node, "hello").unwrap();
    let nothing = policy("nothing", "").replace("selector: {matchLabels: {app: server}}, ", "");
    agent.after(|| node.write("policy.yaml", &nothing));
    is_refused(&client, server.at(8080));
    // The second look is over by then.
    let before = agent.status().uptime_seconds;
    eventually("two seconds pass", || (agent.status().uptime_seconds > before + 2).then_some(()));
    exchange(&older, "still").unwrap();
    exchange(&from_node, "still").unwrap();
}

#[test]
fn an_audit_counts_and_refuses_nobody() {
    if !require("kernel", kernel_tier) {
        return;
    }
    direct_and_relayed(|shop| {
        let _app = App::echo(&shop.pair.server, 8080);
        let stream = open(&shop.intruder, shop.server());
        let dry = policy("dry", &format!("action: DENY, {}", from("intruder")))
            .replace("  namespace: shop\n", "  namespace: shop\n  annotations:\n    istio.io/dry-run: \"true\"\n");
        shop.policies(&(dry + &policy("audit", &format!("action: AUDIT, {}", from("client")))));
        for _ in 0..4 {
            round_trip(&shop.intruder, shop.server()).unwrap();
            round_trip(&shop.pair.client, shop.server()).unwrap();
        }
        exchange(&stream, "still").unwrap();
        let count = |outcome, object: &str| {
            let rows = shop.authorizations(outcome);
            let of = rows.iter().filter(|row| row.verdict.object.as_ref().is_some_and(|name| &*name.name == object));
            of.map(|row| row.count).sum::<u64>()
        };
        assert_eq!((count(Outcome::WouldDeny, "dry"), count(Outcome::Audited, "audit")), (4, 4), "each is seen");
        assert_eq!(shop.authorizations(Outcome::Denied), []);
        assert_eq!(shop.pair.agent.pod("server").mode, Mode::Permissive);
        finish(stream).unwrap();
    });
}

#[test]
fn what_is_not_enforced_as_written_is_said_in_the_status() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let shop = Shop::new(&[]);
    let _app = App::echo(&shop.pair.server, 8080);
    let http = "rules: [{to: [{operation: {paths: [/public]}}]}]";
    shop.policies(&policy("http", http));
    let status = shop.pair.agent.status();
    let [problem] = status.problems.as_slice() else { panic!("{:?}", status.problems) };
    assert_eq!((problem.reason, problem.severity), (Reason::PolicyUnsupported, Severity::Error));
    assert_eq!(problem.field, "spec.rules[0].to[0].operation.paths");
    assert!(!status.healthy);
    is_refused(&shop.pair.client, shop.server());
    shop.policies(&policy("http", &format!("action: DENY, {http}")));
    is_refused(&shop.pair.client, shop.server());
    assert_eq!(shop.pair.agent.status().problems.len(), 1);
    shop.policies("");
    is_let_in(&shop.pair.client, shop.server());
    assert!(shop.pair.agent.status().healthy);
}

#[test]
fn a_new_agent_ends_what_was_forbidden_while_there_was_none() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let mut shop = Shop::new(&[]);
    let _app = App::echo(&shop.pair.server, 8080);
    round_trip(&shop.pair.client, shop.server()).unwrap();
    round_trip(&shop.intruder, shop.server()).unwrap();
    let (good, bad) = (open(&shop.pair.client, shop.server()), open(&shop.intruder, shop.server()));
    shop.pair.agent.terminate();
    assert!(shop.pair.agent.wait(Duration::from_secs(10)).success());
    exchange(&bad, "still").unwrap();
    shop.pair.node.write("policy.yaml", &policy("no-intruders", &format!("action: DENY, {}", from("intruder"))));
    shop.pair.agent = shop.pair.node.start();
    ends(&bad);
    exchange(&good, "undisturbed").unwrap();
}
