//! What a large mesh costs: memory and time of the first snapshot, and time of a change.
//!
//! 50,000 pods of 5,000 services on 5,000 nodes; `cargo bench --bench index -- 10` makes a tenth of it. Times are those of
//! [`Feed::apply`]: reading texts is left out, memory is that of the whole process.

#![expect(clippy::expect_used, reason = "a bench that cannot be set up has to stop")]
#![expect(clippy::print_stdout, reason = "what it is for")]

use std::{
    fmt::Write,
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_agent::{
    discovery::{
        DEFAULT_ROOT_NAMESPACE, Site,
        feed::{Documents, Feed},
    },
    model::{DEFAULT_TRUST_DOMAIN, Mesh, ObjectName},
};

const SERVICES: usize = 5_000;
const PODS_EACH: usize = 10;
const NAMESPACES: usize = 500;
const NODES: usize = 5_000;
/// Objects that come at once at the start.
const PAGE: usize = 500;
const CHANGES: usize = 1_000;

fn namespace(service: usize) -> String {
    format!("team-{:03}", service % NAMESPACES)
}

fn pod_name(service: usize, n: usize) -> String {
    format!("service-{service:04}-{:08x}-{n:05x}", service * 2_654_435_761 % 0xffff_ffff)
}

fn pod_address(service: usize, n: usize) -> IpAddr {
    let number = (service * PODS_EACH + n) as u32 + 10;
    Ipv4Addr::from(0x0a00_0000 + number).into()
}

fn namespaced(service: usize, name: &str) -> String {
    format!("name: {name}, namespace: {}", namespace(service))
}

fn pod(service: usize, n: usize, account: &str) -> String {
    let number = service * PODS_EACH + n;
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{{}, uid: 00000000-0000-4000-8000-{number:012x}, labels: {{app: \
         service-{service:04}, pod-template-hash: h{service:08x}, tier: backend, app.kubernetes.io/part-of: shop, version: \
         v1}}}}, spec: {{nodeName: ip-10-1-{}-{}.internal, serviceAccountName: {account}-{service:04}}}, status: {{phase: \
         Running, podIPs: [{{ip: {}}}]}}}}",
        namespaced(service, &pod_name(service, n)),
        number % NODES / 250,
        number % NODES % 250,
        pod_address(service, n),
    )
}

fn service(service: usize) -> String {
    let [high, low] = (service as u16).to_be_bytes();
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{{}}}, spec: {{clusterIPs: [10.96.{high}.{low}], ports: [{{name: http, port: \
         80}}]}}}}",
        namespaced(service, &format!("service-{service:04}")),
    )
}

/// The endpoints of a service, of which some are not ready.
fn slice(service: usize, is_ready: impl Fn(usize) -> bool) -> String {
    let mut endpoints = String::new();
    for n in 0..PODS_EACH {
        let number = service * PODS_EACH + n;
        let _ = write!(
            endpoints,
            "{{addresses: [{}], conditions: {{ready: {}}}, nodeName: ip-10-1-{}-{}.internal, zone: zone-{}}}, ",
            pod_address(service, n),
            is_ready(n),
            number % NODES / 250,
            number % NODES % 250,
            number % 3,
        );
    }
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{{}, labels: {{kubernetes.io/service-name: \
         service-{service:04}}}}}, addressType: IPv4, ports: [{{name: http, port: 8080}}], endpoints: [{endpoints}]}}",
        namespaced(service, &format!("service-{service:04}-x7k2p")),
    )
}

fn toggled(namespace: usize, mesh: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: team-{namespace:03}, annotations: {{mesh-agent.io/mesh: {mesh}}}}}}}"
    )
}

fn read(text: &str) -> Documents {
    Feed::read(text).expect("well-formed")
}

/// A field of /proc/self/status, in MB.
fn memory(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kilobytes.unwrap_or_default() * 1024.0 / 1e6
}

fn fill(feed: &mut Feed, services: usize) -> (Duration, Arc<Mesh>) {
    let node = |number: usize| {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: ip-10-1-{}-{}.internal, labels: {{topology.kubernetes.io/zone: \
             zone-{}}}}}, status: {{addresses: [{{type: InternalIP, address: 10.1.{}.{}}}]}}}}",
            number / 250,
            number % 250,
            number % 3,
            number / 250,
            number % 250
        )
    };
    let texts: [Box<dyn Iterator<Item = String>>; 5] = [
        Box::new((0..NAMESPACES).map(|number| toggled(number, "enabled"))),
        Box::new((0..NODES).map(node)),
        Box::new((0..services).flat_map(|number| (0..PODS_EACH).map(move |n| pod(number, n, "account")))),
        Box::new((0..services).map(service)),
        Box::new((0..services).map(|number| slice(number, |_| true))),
    ];
    let mut spent = Duration::ZERO;
    let mut mesh = None;
    for mut texts in texts {
        loop {
            let page: Vec<String> = texts.by_ref().take(PAGE).collect();
            if page.is_empty() {
                break;
            }
            let documents = read(&page.join("\n---\n"));
            let start = Instant::now();
            mesh = feed.apply(documents).or(mesh);
            spent += start.elapsed();
        }
    }
    (spent, mesh.expect("there is something"))
}

/// Times changes one by one and says how they went.
fn measure(what: &str, feed: &mut Feed, texts: impl Iterator<Item = String>) {
    let mut times = Vec::new();
    for text in texts {
        let documents = read(&text);
        let start = Instant::now();
        let mesh = feed.apply(documents);
        times.push(start.elapsed());
        assert!(mesh.is_some(), "{what}: {text}");
    }
    times.sort_unstable();
    let at = |share: f64| times.get(((times.len() - 1) as f64 * share) as usize).copied().unwrap_or_default();
    println!("{what}: p50 {:?}, p99 {:?}, most {:?} ({} changes)", at(0.5), at(0.99), at(1.0), times.len());
}

fn lookups(mesh: &Mesh, services: usize) {
    let names: Vec<ObjectName> = (0..services)
        .map(|number| ObjectName::new(&namespace(number), &pod_name(number, number % PODS_EACH)))
        .collect();
    let addresses: Vec<IpAddr> = (0..services).map(|number| pod_address(number, number % PODS_EACH)).collect();
    let start = Instant::now();
    let found = names.iter().filter(|name| black_box(mesh.workloads.get(name)).is_some()).count();
    let by_name = start.elapsed();
    let start = Instant::now();
    let found_at = addresses.iter().filter(|address| black_box(mesh.destination(**address)).is_some()).count();
    let by_address = start.elapsed();
    assert_eq!((found, found_at), (services, services));
    println!("lookup: by name {:?}, by address {:?}", by_name / services as u32, by_address / services as u32);
}

fn main() {
    let share = std::env::args().find_map(|argument| argument.parse::<usize>().ok()).unwrap_or(1).max(1);
    let services = SERVICES / share;
    let pods = services * PODS_EACH;
    let mut feed = Feed::new(Site {
        node: "ip-10-1-0-7.internal".into(),
        trust_domain: DEFAULT_TRUST_DOMAIN.into(),
        root_namespace: DEFAULT_ROOT_NAMESPACE.into(),
        first_generation: 1,
        former: std::sync::Arc::default(),
    });
    let before = memory("VmRSS");
    let (spent, mesh) = fill(&mut feed, services);
    assert_eq!(mesh.workloads.len(), pods);
    let after = memory("VmRSS");
    println!("{pods} pods, {services} services, {pods} endpoints, {NODES} nodes, {} local pods", mesh.local.len());
    println!("first: {spent:?} in pages of {PAGE}");
    println!("memory: {before:.1} -> {after:.1} MB, most {:.1} MB", memory("VmHWM"));
    println!("per pod: {:.0} bytes", (after - before) * 1e6 / pods as f64);
    lookups(&mesh, services);
    drop(mesh);

    let at = |change: usize| change * 7_919 % services;
    measure("endpoint", &mut feed, (0..CHANGES).map(|n| slice(at(n), |own| own != n / services)));
    measure("pod", &mut feed, (0..CHANGES).map(|n| pod(at(n), n / services, "other")));
    let toggle = |n: usize| toggled(n % NAMESPACES, if n < NAMESPACES { "disabled" } else { "enabled" });
    measure("namespace of 100 pods", &mut feed, (0..CHANGES).map(toggle));
    println!("memory after changes: {:.1} MB, most {:.1} MB", memory("VmRSS"), memory("VmHWM"));
}
