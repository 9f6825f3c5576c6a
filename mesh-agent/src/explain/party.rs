//! Who is meant by a name on the command line.

use std::{net::IpAddr, sync::Arc};

use super::{Error, near::near};
use crate::model::{Identity, Mesh, Party, Service, Target, Workload};

/// Who calls.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// A pod.
    Pod(Arc<Workload>),
    /// A service account: one of its pods stands for all, if there is one.
    Account(Identity, Option<Arc<Workload>>),
    /// An address that is no pod's.
    Address(IpAddr),
}

/// Who is called.
#[derive(Clone, Debug)]
pub(super) enum Destination {
    /// A pod.
    Pod(Arc<Workload>),
    /// A service, by each of its families.
    Service(Vec<Arc<Service>>),
    /// An address, whatever it stands for.
    Address(IpAddr),
}

impl Source {
    pub(super) fn find(mesh: &Mesh, text: &str) -> Result<Self, Error> {
        if let Ok(address) = text.parse::<IpAddr>() {
            let address = address.to_canonical();
            let pod = mesh.workload_at(address).cloned();
            return Ok(pod.map_or(Self::Address(address), Self::Pod));
        }
        match parts(text)? {
            (namespace, None | Some("pod"), name) => {
                let pod = pod(mesh, namespace, name).map(Self::Pod);
                pod.ok_or_else(|| {
                    unknown("pod or service account", text, &pods(mesh).chain(accounts(mesh)).collect::<Vec<_>>())
                })
            }
            (namespace, Some("sa"), name) => {
                let own =
                    |w: &&Arc<Workload>| &*w.identity.namespace == namespace && &*w.identity.service_account == name;
                // One that is in the mesh, rather: its connections are governed.
                let mut own: Vec<_> = mesh.workloads.values().filter(own).collect();
                own.sort_by_key(|workload| !workload.enrolled);
                let Some(pod) = own.first() else {
                    return Err(unknown("service account of a pod", text, &accounts(mesh).collect::<Vec<_>>()));
                };
                Ok(Self::Account((*pod.identity).clone(), Some(Arc::clone(pod))))
            }
            _ => Err(Error::Form(text.to_owned(), "NAMESPACE/POD, NAMESPACE/sa/NAME or an IP address")),
        }
    }

    /// The pod whose connections are looked at.
    pub(super) fn pod(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Pod(pod) | Self::Account(_, Some(pod)) => Some(pod),
            Self::Account(_, None) | Self::Address(_) => None,
        }
    }

    /// Where it calls from, in the family of `like` if it has such an address.
    pub(super) fn address(&self, like: Option<IpAddr>) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Pod(_) | Self::Account(..) => of_family(&self.pod()?.addresses, like),
        }
    }

    pub(super) fn describe(&self) -> Party {
        match self {
            Self::Pod(pod) => of_pod(pod, None),
            Self::Account(identity, pod) => Party {
                name: format!("ServiceAccount {}/{}", identity.namespace, identity.service_account),
                identity: Some(identity.clone()),
                ..pod.as_ref().map_or_else(|| of_address(None), |pod| of_pod(pod, None))
            },
            Self::Address(address) => of_address(Some(*address)),
        }
    }
}

impl Destination {
    pub(super) fn find(mesh: &Mesh, text: &str) -> Result<Self, Error> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        let (namespace, kind, name) = parts(text)?;
        let services = || {
            let mut own: Vec<_> = services(mesh)
                .filter(|service| &*service.name.namespace == namespace && &*service.name.name == name)
                .collect();
            own.sort_by_key(|service| service.addresses.first().is_some_and(IpAddr::is_ipv6));
            own.dedup_by(|a, b| Arc::ptr_eq(a, b));
            (!own.is_empty()).then_some(own)
        };
        let (pod, services) = match kind {
            None => (pod(mesh, namespace, name), services()),
            Some("pod") => (pod(mesh, namespace, name), None),
            Some("svc") => (None, services()),
            Some(_) => return Err(Error::Form(text.to_owned(), "NAMESPACE/POD, NAMESPACE/SERVICE or an IP address")),
        };
        match (pod, services) {
            (Some(_), Some(_)) => Err(Error::Ambiguous { namespace: namespace.to_owned(), name: name.to_owned() }),
            (Some(pod), None) => Ok(Self::Pod(pod)),
            (None, Some(services)) => Ok(Self::Service(services)),
            (None, None) => {
                let named = services_named(mesh);
                Err(unknown("pod or service with an address", text, &pods(mesh).chain(named).collect::<Vec<_>>()))
            }
        }
    }

    /// The address that is called, in the family of `like` if it has such.
    pub(super) fn address(&self, like: Option<IpAddr>) -> Option<IpAddr> {
        match self {
            Self::Pod(pod) => of_family(&pod.addresses, like),
            Self::Service(services) => {
                let addresses: Vec<_> = services.iter().flat_map(|service| service.addresses.iter().copied()).collect();
                of_family(&addresses, like)
            }
            Self::Address(address) => Some(*address),
        }
    }

    pub(super) fn describe(&self, mesh: &Mesh, address: IpAddr) -> Party {
        match self {
            Self::Pod(pod) => of_pod(pod, Some(address)),
            Self::Service(_) | Self::Address(_) => match mesh.destination(address) {
                Some(Target::Service(service)) => {
                    Party { name: format!("Service {}", service.name), ..of_address(Some(address)) }
                }
                Some(Target::Workload(pod)) => of_pod(pod, Some(address)),
                None => of_address(Some(address)),
            },
        }
    }
}

pub(super) fn of_pod(pod: &Workload, address: Option<IpAddr>) -> Party {
    Party {
        name: format!("Pod {}", pod.name),
        address: address.or_else(|| pod.addresses.first().copied()),
        identity: Some((*pod.identity).clone()),
        node: pod.node.as_deref().map(str::to_owned),
        enrolled: Some(pod.enrolled),
    }
}

pub(super) fn of_address(address: Option<IpAddr>) -> Party {
    let name = address.map_or_else(String::new, |address| address.to_string());
    Party { name, address, identity: None, node: None, enrolled: None }
}

/// Namespace, kind if one is named, name.
fn parts(text: &str) -> Result<(&str, Option<&str>, &str), Error> {
    let parts: Vec<&str> = text.split('/').collect();
    match parts.as_slice() {
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => Ok((namespace, None, name)),
        [namespace, kind, name] if !namespace.is_empty() && !name.is_empty() => Ok((namespace, Some(kind), name)),
        _ => Err(Error::Form(text.to_owned(), "NAMESPACE/NAME or an IP address")),
    }
}

fn of_family(addresses: &[IpAddr], like: Option<IpAddr>) -> Option<IpAddr> {
    let alike = |address: &&IpAddr| like.is_some_and(|like| like.is_ipv4() == address.is_ipv4());
    addresses.iter().find(alike).or_else(|| addresses.first()).copied()
}

fn pod(mesh: &Mesh, namespace: &str, name: &str) -> Option<Arc<Workload>> {
    mesh.workloads.get(&crate::model::ObjectName::new(namespace, name)).cloned()
}

fn services(mesh: &Mesh) -> impl Iterator<Item = Arc<Service>> {
    mesh.destinations.values().filter_map(|known| match known {
        Target::Service(service) => Some(Arc::clone(service)),
        Target::Workload(_) => None,
    })
}

fn services_named(mesh: &Mesh) -> impl Iterator<Item = String> {
    services(mesh).map(|service| service.name.to_string())
}

fn pods(mesh: &Mesh) -> impl Iterator<Item = String> {
    mesh.workloads.keys().map(ToString::to_string)
}

fn accounts(mesh: &Mesh) -> impl Iterator<Item = String> {
    mesh.workloads.values().map(|pod| format!("{}/sa/{}", pod.identity.namespace, pod.identity.service_account))
}

fn unknown(what: &'static str, text: &str, candidates: &[String]) -> Error {
    let near = near(text, candidates.iter().map(String::as_str)).into_iter().map(str::to_owned).collect();
    Error::Unknown { what, text: text.to_owned(), near }
}
