//! What a connection costs in decisions: route, balance, and what may be cached, on a mesh of 5,000 services.

#![expect(clippy::expect_used, reason = "a bench that cannot be set up has to stop")]

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use criterion::{Criterion, criterion_group, criterion_main};
use mesh_agent::{
    balance,
    model::{
        Action, Authorization, DEFAULT_TRUST_DOMAIN, Endpoint, Identity, InboundPolicy, Mesh, Mode, Node, ObjectName,
        OrigDst, Pattern, Rule, Service, ServicePort, SharedMap, Source, Target, TrafficDistribution, Values, Workload,
    },
    policy::{self, Client, Peer},
    proxy::direct,
    route,
};

const SERVICES: u16 = 5_000;
const ENDPOINTS: u8 = 10;

fn mesh() -> Mesh {
    let mut destinations = SharedMap::default();
    for service in 0..SERVICES {
        let [high, low] = service.to_be_bytes();
        let endpoints: Vec<Endpoint> = (0..ENDPOINTS).map(|n| endpoint(high, low, n)).collect();
        for endpoint in &endpoints {
            let target = Target::Workload(Arc::clone(endpoint.workload.as_ref().expect("made so")));
            destinations.insert(endpoint.address, target);
        }
        let address = IpAddr::from([10, 96, high, low]);
        let port =
            ServicePort { port: 80, name: "http".into(), endpoints: endpoints.into(), list: u32::from(service) + 1 };
        let service = Service {
            name: ObjectName::new("shop", &format!("service-{service}")),
            addresses: vec![address],
            ports: vec![port],
            distribution: TrafficDistribution::Any,
        };
        destinations.insert(address, Target::Service(Arc::new(service)));
    }
    Mesh { node: Node { name: "n1".into(), ..Node::default() }, destinations, ..Mesh::default() }
}

fn identity(service_account: &str) -> Identity {
    Identity {
        trust_domain: DEFAULT_TRUST_DOMAIN.into(),
        namespace: "shop".into(),
        service_account: service_account.into(),
    }
}

fn endpoint(high: u8, low: u8, n: u8) -> Endpoint {
    let address = IpAddr::from(Ipv4Addr::new(10, high.wrapping_add(100), low, n));
    let name = ObjectName::new("shop", &format!("pod-{high}-{low}-{n}"));
    let workload = Workload {
        node: Some("n1".into()),
        addresses: vec![address],
        netns: None,
        host_network: false,
        enrolled: n.is_multiple_of(2),
        mode: Mode::Permissive,
        ..Workload::new(name, Arc::new(identity("default")))
    };
    Endpoint {
        address,
        port: 8080,
        ready: true,
        draining: false,
        node: None,
        zone: None,
        workload: Some(Arc::new(workload)),
    }
}

fn benches(c: &mut Criterion) {
    let mesh = mesh();
    let service = OrigDst(SocketAddr::from(([10, 96, 7, 9], 80)));
    let pod = OrigDst(SocketAddr::from(([10, 107, 9, 2], 8080)));
    let stranger = OrigDst(SocketAddr::from(([192, 0, 2, 1], 443)));
    for (name, destination) in [("service", service), ("pod", pod), ("stranger", stranger)] {
        c.bench_function(&format!("route/{name}"), |b| b.iter(|| route::select(&mesh, black_box(destination))));
    }
    if let Ok(route::Route::Service { port, .. }) = route::select(&mesh, service) {
        c.bench_function("balance/10", |b| b.iter(|| balance::pick(&port.endpoints, black_box(0x9e37_79b9)).is_some()));
    }
    policies(c);
    let mut backends = Vec::new();
    let client = Client::Pod {
        name: ObjectName::new("shop", "client"),
        identity: Arc::new(identity("client")),
        addresses: [IpAddr::from([10, 1, 0, 1])].into(),
    };
    c.bench_function("cacheable/service", |b| {
        b.iter(|| direct::cacheable(&mesh, &client, black_box(service), &mut backends).is_some());
    });
    c.bench_function("cacheable/pod", |b| {
        b.iter(|| direct::cacheable(&mesh, &client, black_box(pod), &mut backends).is_some());
    });
}

/// Whether somebody may: without policies, with one that locks a namespace down, and with many of which the last allows.
fn policies(c: &mut Criterion) {
    let caller = identity("caller");
    let peer = Peer { identity: Some(&caller), address: [10, 1, 0, 1].into() };
    let destination = SocketAddr::from(([10, 107, 9, 2], 8080));
    let allow = |pattern: &str| {
        let principals = Values { any: vec![Pattern::new(pattern)], not: Vec::new() };
        let from = vec![Source { principals, ..Source::default() }];
        let rules = vec![Rule { from, ..Rule::default() }];
        let name = ObjectName::new("shop", "allow");
        Arc::new(Authorization { name, action: Action::Allow, is_dry_run: false, rules })
    };
    let locked = InboundPolicy { allow: vec![allow("*/ns/shop/sa/caller")], ..InboundPolicy::default() };
    let many = (0..100).map(|n| allow(&format!("cluster.local/ns/shop/sa/service-{n}")));
    let many = many.chain([allow("cluster.local/ns/shop/sa/caller")]).collect();
    let many = InboundPolicy { allow: many, ..InboundPolicy::default() };
    for (name, policy) in [("none", InboundPolicy::default()), ("one", locked), ("101", many)] {
        c.bench_function(&format!("authorize/{name}"), |b| {
            b.iter(|| policy::authorize(&policy, black_box(&peer), destination).verdict.is_allowed());
        });
    }
}

criterion_group!(decide, benches);
criterion_main!(decide);
