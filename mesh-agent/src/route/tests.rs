use super::*;
use crate::model::{Endpoint, Mode, ObjectName, TrafficDistribution};

fn mesh() -> Mesh {
    let identity = Arc::new("spiffe://cluster.local/ns/shop/sa/default".parse().unwrap());
    let pod = Arc::new(Workload {
        node: None,
        addresses: vec!["10.0.0.1".parse().unwrap()],
        netns: None,
        host_network: false,
        enrolled: true,
        mode: Mode::Permissive,
        ..Workload::new(ObjectName::new("shop", "web-0"), identity)
    });
    let endpoint = Endpoint {
        address: "10.0.0.1".parse().unwrap(),
        port: 8080,
        ready: true,
        draining: false,
        node: None,
        zone: None,
        workload: Some(Arc::clone(&pod)),
    };
    let port =
        |port, list, endpoints: Vec<Endpoint>| ServicePort { port, name: "".into(), endpoints: endpoints.into(), list };
    let service = Arc::new(Service {
        name: ObjectName::new("shop", "web"),
        addresses: vec!["10.96.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        ports: vec![port(80, 1, vec![endpoint]), port(81, 2, Vec::new())],
        distribution: TrafficDistribution::Any,
    });
    let mut mesh = Mesh::default();
    mesh.destinations.insert("10.0.0.1".parse().unwrap(), Target::Workload(pod));
    for address in &service.addresses {
        mesh.destinations.insert(*address, Target::Service(Arc::clone(&service)));
    }
    mesh
}

/// What [`select`] says, in short.
fn route(destination: &str) -> String {
    match select(&mesh(), OrigDst(destination.parse().unwrap())) {
        Ok(Route::Passthrough(upstream)) => format!("passthrough {upstream}"),
        Ok(Route::Workload { workload, upstream }) => format!("workload {} {upstream}", workload.name),
        Ok(Route::Service { service, port }) => format!("service {} list {}", service.name, port.list),
        Err(reason) => reason.to_string(),
    }
}

#[test]
fn destinations_lead_where_the_mesh_says() {
    for (destination, expected) in [
        ("192.0.2.1:443", "passthrough 192.0.2.1:443"),
        ("[2001:db8::9]:443", "passthrough [2001:db8::9]:443"),
        ("10.0.0.1:9999", "workload shop/web-0 10.0.0.1:9999"),
        ("10.96.0.1:80", "service shop/web list 1"),
        ("[fd00::1]:80", "service shop/web list 1"),
        ("[::ffff:10.96.0.1]:80", "service shop/web list 1"),
        ("10.96.0.1:81", "no_endpoints"),
        ("10.96.0.1:8080", "unknown_service_port"),
    ] {
        assert_eq!(route(destination), expected, "{destination}");
    }
}
