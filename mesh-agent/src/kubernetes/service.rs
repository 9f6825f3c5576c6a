//! Where a Service answers, without DNS and without kube-proxy: agents start before either is there.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{Service, ServicePort as Port},
    discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
};
use kube::{Api, Client, api::ListParams};
use tokio::{sync::OnceCell, time::timeout};

use super::{Access, client::why};

/// How long the API server may take to say it.
const ANSWER: Duration = Duration::from_secs(3);
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// `NAME.NAMESPACE.svc:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    name: String,
    namespace: String,
    port: u16,
}

impl FromStr for ServicePort {
    type Err = ();

    fn from_str(address: &str) -> Result<Self, ()> {
        let (host, port) = address.rsplit_once(':').ok_or(())?;
        let mut parts = host.split('.');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(name), Some(namespace), Some("svc"), None) if !name.is_empty() && !namespace.is_empty() => {
                let port = port.parse().map_err(|_| ())?;
                Ok(Self { name: name.to_owned(), namespace: namespace.to_owned(), port })
            }
            _ => Err(()),
        }
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.svc:{}", self.name, self.namespace, self.port)
    }
}

/// Asks the API server where a Service answers.
pub struct ServiceAddresses {
    service: ServicePort,
    access: Access,
    client: OnceCell<Client>,
    /// What was found last: the API server may be away when it is asked again.
    last: Mutex<Vec<SocketAddr>>,
}

impl ServiceAddresses {
    /// Nothing is asked yet.
    pub fn new(service: ServicePort, access: Access) -> Self {
        Self { service, access, client: OnceCell::new(), last: Mutex::default() }
    }

    /// The addresses of its ready endpoints, in random order, and then its own; those that were found last while the API
    /// server does not say. Where no API server is known they are looked up by name.
    ///
    /// # Errors
    /// Why they are not known.
    pub async fn find(&self) -> Result<Vec<SocketAddr>, String> {
        let Ok(client) = self.client.get_or_try_init(|| self.access.client()).await else {
            let found = tokio::net::lookup_host(self.service.to_string()).await;
            return found.map(Iterator::collect).map_err(|error| error.to_string());
        };
        let answer = timeout(ANSWER, self.ask(client)).await;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match answer.unwrap_or_else(|_| Err("the API server did not answer in time".to_owned())) {
            Ok(found) => last.clone_from(&found),
            Err(why) if last.is_empty() => return Err(why),
            Err(why) => tracing::warn!(service = %self.service, why, "the addresses that were found last are used"),
        }
        Ok(last.clone())
    }

    async fn ask(&self, client: &Client) -> Result<Vec<SocketAddr>, String> {
        let services: Api<Service> = Api::namespaced(client.clone(), &self.service.namespace);
        // A list of one: agents may list Services anyway.
        let named = ListParams::default().fields(&format!("metadata.name={}", self.service.name));
        let services = services.list(&named).await.map_err(|error| why(&error))?;
        let service = services.items.first().ok_or("there is no such Service")?;
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &self.service.namespace);
        let selected = ListParams::default().labels(&format!("{SERVICE_NAME}={}", self.service.name));
        let slices = slices.list(&selected).await.map_err(|error| why(&error))?;
        let random = RandomState::new();
        addresses(service, &slices.items, self.service.port, |address| random.hash_one(address))
    }
}

fn addresses(
    service: &Service,
    slices: &[EndpointSlice],
    port: u16,
    order: impl Fn(&SocketAddr) -> u64,
) -> Result<Vec<SocketAddr>, String> {
    let spec = service.spec.as_ref().ok_or("the Service has no spec")?;
    let has_number = |candidate: &&Port| candidate.port == i32::from(port);
    let named =
        spec.ports.iter().flatten().find(has_number).ok_or_else(|| format!("the Service has no port {port}"))?;
    let mut addresses = Vec::new();
    for slice in slices {
        let is_same = |candidate: &&EndpointPort| {
            candidate.name.as_deref().unwrap_or_default() == named.name.as_deref().unwrap_or_default()
        };
        let target = slice.ports.iter().flatten().find(is_same).and_then(|port| u16::try_from(port.port?).ok());
        let Some(target) = target else { continue };
        for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| is_ready(endpoint)) {
            // All addresses of an endpoint are the same pod's.
            let ip = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok());
            addresses.extend(ip.map(|ip| SocketAddr::new(ip, target)));
        }
    }
    addresses.sort_by_key(order);
    let own = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
    addresses.extend(own.map(|ip| SocketAddr::new(ip, port)));
    if addresses.is_empty() { Err("the Service has no ready endpoint".to_owned()) } else { Ok(addresses) }
}

/// What is not said is ready.
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_of_services_are_told_from_others() {
        let service = |address: &str| address.parse::<ServicePort>();
        let expected = ServicePort { name: "ca".to_owned(), namespace: "mesh".to_owned(), port: 15012 };
        assert_eq!(service("ca.mesh.svc:15012"), Ok(expected));
        for other in
            ["ca.mesh.svc", "ca.mesh:1", "ca.mesh.svc.cluster.local:1", "10.0.0.1:1", ".mesh.svc:1", "a.b.svc:x"]
        {
            assert_eq!(service(other), Err(()), "{other}");
        }
    }

    #[test]
    fn ready_endpoints_come_before_the_service_itself() {
        let service = serde_json::from_value(json!({
            "metadata": {"name": "ca"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "grpc", "port": 15012, "targetPort": 7}]},
        }))
        .unwrap();
        let slice = |endpoints| {
            serde_json::from_value(json!({
                "metadata": {"name": "ca-1"}, "addressType": "IPv4", "endpoints": endpoints,
                "ports": [{"name": "http", "port": 8}, {"name": "grpc", "port": 7}],
            }))
            .unwrap()
        };
        let endpoints = json!([
            {"addresses": ["10.1.0.1"], "conditions": {"ready": true}},
            {"addresses": ["10.1.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.1.0.3"]},
            {"addresses": ["ca.example"]},
        ]);
        let find = |slices: &[EndpointSlice], port| {
            let found = addresses(&service, slices, port, |_| 0)?;
            Ok::<_, String>(found.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(find(&[slice(endpoints)], 15012).unwrap(), ["10.1.0.1:7", "10.1.0.3:7", "10.96.0.7:15012"]);
        assert_eq!(find(&[], 15012).unwrap(), ["10.96.0.7:15012"]);
        assert!(find(&[], 1).unwrap_err().contains("no port 1"));
    }
}
