use std::fmt::Write;

use ipnet::IpNet;

use super::*;
use crate::model::{Endpoint, Mode, ObjectName, Service, ServicePort, Target, TrafficDistribution};

fn pod(name: &str, account: &str, address: &str, node: &str) -> Workload {
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap();
    let mut workload = Workload::new(ObjectName::new("shop", name), Arc::new(identity));
    workload.addresses = vec![address.parse().unwrap()];
    workload.node = Some(node.into());
    workload.enrolled = true;
    workload
}

fn strict(mut pod: Workload) -> Workload {
    pod.mode = Mode::Strict;
    pod.policy = Arc::new(crate::model::InboundPolicy { mode: Mode::Strict, ..Default::default() });
    pod
}

fn mesh() -> Mesh {
    let mut mesh = Mesh::default();
    mesh.node.name = "here".into();
    mesh.node.addresses = vec!["192.0.2.1".parse().unwrap()];
    let mut client = pod("client", "client", "10.0.0.1", "here");
    let exclusions = Arc::make_mut(&mut client.exclusions);
    exclusions.outbound_ports = vec![25];
    exclusions.outbound_cidrs = vec!["198.51.100.0/24".parse::<IpNet>().unwrap()];
    let mut guarded = strict(pod("guarded", "guarded", "10.0.0.3", "here"));
    Arc::make_mut(&mut guarded.exclusions).inbound_ports = vec![9000];
    let mut off = pod("off", "off", "10.0.0.4", "here");
    off.enrolled = false;
    let mut far_off = pod("far-off", "off", "10.0.1.4", "there");
    far_off.enrolled = false;
    let mut bare = pod("bare", "client", "10.0.0.9", "here");
    bare.addresses.clear();
    let pods = [
        client,
        pod("web-0", "web", "10.0.0.2", "here"),
        guarded,
        off,
        far_off,
        bare,
        pod("web-1", "web", "10.0.1.2", "there"),
        pod("far-client", "client", "10.0.1.3", "there"),
        strict(pod("far-guarded", "guarded", "10.0.1.5", "there")),
    ];
    for pod in pods {
        let pod = Arc::new(pod);
        mesh.put(Arc::clone(&pod));
        for address in &pod.addresses {
            mesh.destinations.insert(*address, Target::Workload(Arc::clone(&pod)));
        }
    }
    for (name, address, pods) in [("web", "10.96.0.1", &["web-0", "web-1"][..]), ("client", "10.96.0.2", &[])] {
        let endpoints = pods.iter().map(|name| endpoint(&mesh, name)).collect();
        let service = Arc::new(Service {
            name: ObjectName::new("shop", name),
            addresses: vec![address.parse().unwrap()],
            ports: vec![ServicePort { port: 80, name: "".into(), endpoints, list: 1 }],
            distribution: TrafficDistribution::Any,
        });
        mesh.destinations.insert(address.parse().unwrap(), Target::Service(service));
    }
    mesh
}

fn endpoint(mesh: &Mesh, name: &str) -> Endpoint {
    let pod = mesh.workloads.get(&ObjectName::new("shop", name)).unwrap();
    Endpoint {
        address: pod.addresses[0],
        port: 8080,
        ready: true,
        draining: false,
        node: None,
        zone: None,
        workload: Some(Arc::clone(pod)),
    }
}

fn ask(source: &str, destination: &str, port: u16, direct: bool) -> Result<Explanation, Error> {
    let mesh = mesh();
    let here = Here { mesh: &mesh, node_addresses: &["10.77.0.1".parse().unwrap()] };
    explain(Site { here, direct }, &Query { source: source.to_owned(), destination: destination.to_owned(), port })
}

/// The answer in short: verdict, then way and transport of every endpoint.
fn short(source: &str, destination: &str, port: u16) -> String {
    let answer = match ask(source, destination, port, true) {
        Ok(answer) => answer,
        Err(error) => return error.to_string(),
    };
    let mut out = answer.reason.to_string();
    for path in &answer.paths {
        let transport = path.transport.plaintext_reason().map_or(path.transport.name(), PlaintextReason::code);
        let mark = if path.allowed { "" } else { "!" };
        let _ = write!(out, "; {mark}{} {} {transport}", path.endpoint.address.unwrap(), path.way.name());
    }
    out
}

#[test]
fn connections_go_as_the_data_path_would_have_them() {
    for (source, destination, port, expected) in [
        // Between pods of the mesh.
        ("shop/client", "shop/web-0", 80, "ok; 10.0.0.2 direct local"),
        ("shop/client", "10.0.0.2", 80, "ok; 10.0.0.2 direct local"),
        ("10.0.0.1", "shop/web-1", 80, "ok; 10.0.1.2 relayed mutual"),
        ("shop/client", "shop/guarded", 80, "ok; 10.0.0.3 direct local"),
        ("shop/client", "shop/far-guarded", 80, "ok; 10.0.1.5 relayed mutual"),
        ("shop/sa/client", "shop/web-0", 80, "ok; 10.0.0.2 direct local"),
        // Seen from the other node.
        ("shop/far-client", "shop/web-1", 80, "ok; 10.0.1.2 direct local"),
        ("shop/far-client", "shop/web-0", 80, "ok; 10.0.0.2 relayed mutual"),
        ("shop/far-client", "shop/guarded", 80, "ok; 10.0.0.3 relayed mutual"),
        // Services.
        ("shop/client", "shop/web", 80, "ok; 10.0.0.2 direct local; 10.0.1.2 relayed mutual"),
        ("shop/client", "10.96.0.1", 80, "ok; 10.0.0.2 direct local; 10.0.1.2 relayed mutual"),
        ("shop/client", "shop/web", 81, "unknown_service_port"),
        ("shop/client", "shop/svc/client", 80, "no_endpoints"),
        // Out of the mesh.
        ("shop/client", "shop/off", 80, "ok; 10.0.0.4 relayed local"),
        ("shop/client", "shop/far-off", 80, "ok; 10.0.1.4 relayed destination_not_meshed"),
        ("shop/client", "203.0.113.1", 443, "ok; 203.0.113.1 relayed destination_unknown"),
        ("shop/client", "192.0.2.1", 6443, "ok; 192.0.2.1 relayed local"),
        // Into the mesh.
        ("shop/off", "shop/web-0", 80, "ok; 10.0.0.2 relayed local"),
        ("shop/off", "shop/guarded", 80, "plaintext_refused; !10.0.0.3 relayed local"),
        ("shop/far-off", "shop/web-0", 80, "ok; 10.0.0.2 relayed source_not_meshed"),
        ("shop/far-off", "shop/guarded", 80, "plaintext_refused; !10.0.0.3 relayed source_not_meshed"),
        ("203.0.113.1", "shop/guarded", 80, "plaintext_refused; !10.0.0.3 relayed source_unknown"),
        ("203.0.113.1", "shop/web-1", 80, "ok; 10.0.1.2 relayed source_unknown"),
        ("203.0.113.1", "shop/guarded", 9000, "ok; 10.0.0.3 untouched source_unknown"),
        // Probes of the node: those of this node only.
        ("10.77.0.1", "shop/guarded", 80, "ok; 10.0.0.3 untouched local"),
        ("10.77.0.1", "shop/far-guarded", 80, "plaintext_refused; !10.0.1.5 relayed node_itself"),
        // Excluded at the source: the destination takes it for a stranger's.
        ("shop/client", "203.0.113.1", 25, "ok; 203.0.113.1 untouched excluded"),
        ("shop/client", "198.51.100.7", 443, "ok; 198.51.100.7 untouched excluded"),
        ("shop/client", "shop/guarded", 25, "plaintext_refused; !10.0.0.3 relayed local"),
        ("shop/client", "shop/far-guarded", 25, "plaintext_refused; !10.0.1.5 relayed excluded"),
        // Neither end is in the mesh.
        ("shop/off", "shop/far-off", 80, "ok; 10.0.1.4 untouched source_not_meshed"),
    ] {
        assert_eq!(short(source, destination, port), expected, "{source} {destination} {port}");
    }
}

#[test]
fn without_direct_connections_all_are_relayed() {
    let answer = ask("shop/client", "shop/web-0", 80, false).unwrap();
    let [path] = answer.paths.as_slice() else { panic!("{answer:?}") };
    assert_eq!((path.way, path.way_why.as_str()), (Way::Relayed, "--direct is off"));
}

#[test]
fn names_that_lead_nowhere_come_with_those_that_were_meant() {
    for (source, destination, expected) in [
        (
            "shop/clint",
            "shop/web-0",
            "there is no pod or service account \"shop/clint\"; did you mean shop/client or shop/sa/client or shop/far-client?",
        ),
        (
            "shop/client",
            "shop/web-9",
            "there is no pod or service with an address \"shop/web-9\"; did you mean shop/web-0 or shop/web-1 or shop/web?",
        ),
        (
            "shop/sa/xxxxxxxxxxxxxxxxxxxx",
            "shop/web",
            "there is no service account of a pod \"shop/sa/xxxxxxxxxxxxxxxxxxxx\"",
        ),
        ("shop/web-0", "shop/client", "shop/client is a pod and a service: write shop/pod/client or shop/svc/client"),
        ("client", "shop/web", "\"client\" is neither of NAMESPACE/NAME or an IP address"),
        (
            "shop/svc/web",
            "shop/web",
            "\"shop/svc/web\" is neither of NAMESPACE/POD, NAMESPACE/sa/NAME or an IP address",
        ),
        ("shop/client", "shop/", "\"shop/\" is neither of NAMESPACE/NAME or an IP address"),
        (
            "shop/client",
            "shop/bare",
            "shop/bare has no known address: set status.podIPs in its manifest, or ask for its address",
        ),
    ] {
        assert_eq!(short(source, destination, 80), expected);
    }
}
