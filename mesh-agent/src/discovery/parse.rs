//! The text of a file to objects and problems. Pure.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use super::{
    annotations,
    field::{Field, FieldError, Result},
    object::{Key, Kind, NodeSpec, Object, Pod, ServiceSpec, Settings, Slice, SliceEndpoint},
    security, yaml,
};
use crate::model::{Location, ObjectName, PodUid, Problem, Reason, Severity, TrafficDistribution};

#[cfg(test)]
mod tests;

/// A document, or an item of a `List`, that says which object it is.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) location: Location,
    /// `None`: it cannot be used; a problem says why.
    pub(super) object: Option<Arc<Object>>,
    /// What is in force instead while no good version of it is known: policies that cannot be read let nobody in, pods and
    /// namespaces are what can be read of them.
    pub(super) otherwise: Option<Arc<Object>>,
}

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Parsed {
    pub(super) entries: Vec<Entry>,
    pub(super) problems: Vec<Problem>,
    /// Documents of kinds that the agent does not read.
    pub(super) ignored: usize,
    /// A document does not say which object it is: it may be any that was in the file before.
    pub(super) has_nameless: bool,
}

/// Reads the text of the file `path`.
///
/// # Errors
/// The text is not YAML.
pub(super) fn file(path: &Arc<PathBuf>, text: &str) -> std::result::Result<Parsed, Problem> {
    let documents = yaml::documents(text).map_err(|error| Problem {
        reason: Reason::BadYaml,
        severity: Severity::Error,
        location: Location { file: Some(Arc::clone(path)), line: error.line },
        object: String::new(),
        field: String::new(),
        message: format!("not YAML: {}", error.message),
        remedy: Reason::BadYaml.remedy().into(),
    })?;
    let mut parser = Parser { path: Some(path), parsed: Parsed::default() };
    for document in &documents {
        parser.document(&Field::root(document));
    }
    Ok(parser.parsed)
}

/// What came of an object of the API server.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) name: ObjectName,
    /// As those of an [`Entry`].
    pub(super) object: Option<Arc<Object>>,
    pub(super) otherwise: Option<Arc<Object>>,
    pub(super) problems: Vec<Problem>,
}

/// Reads an object of this kind that the API server gave.
///
/// # Errors
/// It does not say its name.
pub(super) fn served(kind: Kind, object: &yaml::Node) -> Result<Served> {
    let root = Field::root(object);
    let name = name(&root, kind)?;
    let mut parser = Parser { path: None, parsed: Parsed::default() };
    parser.named(&root, Key { kind, name: name.clone() });
    let Parsed { mut entries, problems, .. } = parser.parsed;
    let (object, otherwise) = entries.pop().map(|entry| (entry.object, entry.otherwise)).unwrap_or_default();
    Ok(Served { name, object, otherwise, problems })
}

/// The name of an object of this kind that the API server gave.
///
/// # Errors
/// It does not say it.
pub(super) fn served_name(kind: Kind, object: &yaml::Node) -> Result<ObjectName> {
    name(&Field::root(object), kind)
}

struct Parser<'a> {
    /// The file; none where objects come from the API server.
    path: Option<&'a Arc<PathBuf>>,
    parsed: Parsed,
}

impl Parser<'_> {
    fn document(&mut self, root: &Field<'_>) {
        if root.is_absent() {
            return;
        }
        if root.get("kind").text() == Ok(Some("List")) {
            let items = root.get("items");
            match items.items() {
                Ok(items) => items.for_each(|item| self.object(&item)),
                Err(error) => self.nameless(&error, "List".into()),
            }
        } else {
            self.object(root);
        }
    }

    fn object(&mut self, root: &Field<'_>) {
        let kind = match self.kind(root) {
            Ok(Some(kind)) => kind,
            Ok(None) => return,
            Err(error) => return self.nameless(&error, String::new()),
        };
        let name = match name(root, kind) {
            Ok(name) => name,
            Err(error) => return self.nameless(&error, kind.name().into()),
        };
        self.named(root, Key { kind, name });
    }

    fn named(&mut self, root: &Field<'_>, key: Key) {
        let location = Location { file: self.path.cloned(), line: root.line() };
        let mut notes = Vec::new();
        let mut otherwise = None;
        let mut object = object(root, &key, &mut notes);
        if let (None, Ok(Object::Pod(pod))) = (self.path, &mut object) {
            distrust(pod, root, &mut notes);
        }
        let object = match object {
            Ok(object) => Some(Arc::new(object)),
            Err(error) => {
                self.problem(&error, Severity::Error, key.to_string());
                otherwise = unreadable(root, &key);
                if let (None, Some(Object::Pod(pod))) = (self.path, &mut otherwise) {
                    // What is wrong with that, too, is told when all else is mended.
                    distrust(pod, root, &mut Vec::new());
                }
                None
            }
        };
        for note in &notes {
            let is_error = note.reason == Reason::PolicyUnsupported;
            self.problem(note, if is_error { Severity::Error } else { Severity::Warning }, key.to_string());
        }
        let otherwise = otherwise.map(Arc::new);
        self.parsed.entries.push(Entry { key, location, object, otherwise });
    }

    /// The kind, or `None` if it is none that we read.
    fn kind(&mut self, root: &Field<'_>) -> Result<Option<Kind>> {
        let field = root.get("kind");
        let Some(kind) = field.text()? else {
            let error = field.error(
                Reason::UnknownKind,
                "a document without a kind".into(),
                "Add apiVersion and kind, or move it elsewhere; objects that were in this file until now stay in force.",
            );
            self.problem(&error, Severity::Warning, String::new());
            self.parsed.has_nameless = true;
            return Ok(None);
        };
        let field = root.get("apiVersion");
        let version = field.text()?;
        let known = Kind::ALL.into_iter().find(|known| known.name() == kind);
        match (known, version) {
            (Some(kind), Some(version)) if kind.api_versions().contains(&version) => return Ok(Some(kind)),
            (Some(kind), None) => {
                let version = kind.api_versions().first().copied().unwrap_or_default();
                let remedy = format!("Add apiVersion: {version}.");
                return Err(field.error(Reason::BadField, "is missing".into(), remedy));
            }
            // Those who wrote it expect that somebody obeys.
            (_, Some(version))
                if version.starts_with("mesh-agent.io/") || version.starts_with("security.istio.io/") =>
            {
                let message = format!("{kind} of {version} is not read by this version");
                let error = field.error(Reason::UnknownKind, message, Reason::UnknownKind.remedy());
                self.problem(&error, Severity::Warning, kind.to_owned());
            }
            _ => {}
        }
        self.parsed.ignored += 1;
        Ok(None)
    }

    fn nameless(&mut self, error: &FieldError, object: String) {
        self.problem(error, Severity::Error, object);
        self.parsed.has_nameless = true;
    }

    fn problem(&mut self, error: &FieldError, severity: Severity, object: String) {
        self.parsed.problems.push(Problem {
            reason: error.reason,
            severity,
            location: Location { file: self.path.cloned(), line: error.line },
            object,
            field: error.field.clone(),
            message: error.message.clone(),
            remedy: error.remedy.clone(),
        });
    }
}

fn name(root: &Field<'_>, kind: Kind) -> Result<ObjectName> {
    let metadata = root.mapping("metadata")?;
    let name = valid_name(&metadata.get("name"))?;
    let field = metadata.get("namespace");
    let namespace = match (kind.is_namespaced(), field.is_absent()) {
        (false, _) => "",
        (true, true) => "default",
        (true, false) => valid_name(&field)?,
    };
    Ok(ObjectName::new(namespace, name))
}

/// A name as Kubernetes allows it: it goes into identities, metrics and paths.
fn valid_name<'a>(field: &Field<'a>) -> Result<&'a str> {
    let name = field.required_text()?;
    if is_name(name) {
        Ok(name)
    } else {
        Err(field.bad("is not a name", "Use at most 253 lower-case letters, digits, - and ., not at either end."))
    }
}

pub(super) fn is_name(name: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.starts_with(alphanumeric)
        && name.ends_with(alphanumeric)
        && name.chars().all(|c| alphanumeric(c) || matches!(c, '-' | '.'))
}

fn object(root: &Field<'_>, key: &Key, notes: &mut Vec<FieldError>) -> Result<Object> {
    let metadata = root.mapping("metadata")?;
    let settings = annotations::settings(&metadata, key.kind)?;
    Ok(match key.kind {
        Kind::Namespace => Object::Namespace(Arc::new(settings)),
        Kind::ServiceAccount => Object::ServiceAccount,
        Kind::Pod => Object::Pod(pod(root, &metadata, settings)?),
        Kind::Service => Object::Service(service(&root.mapping("spec")?, notes)?),
        Kind::EndpointSlice => Object::EndpointSlice(slice(root, &metadata, notes)?),
        Kind::Node => Object::Node(node(root, &metadata)?),
        Kind::PeerAuthentication => Object::PeerAuthentication(security::peer_authentication(root)?),
        Kind::AuthorizationPolicy => {
            Object::AuthorizationPolicy(security::authorization_policy(root, &key.name, settings.audit, notes)?)
        }
    })
}

fn pod(root: &Field<'_>, metadata: &Field<'_>, settings: Settings) -> Result<Pod> {
    let spec = root.mapping("spec")?;
    let status = root.mapping("status")?;
    let phase = status.get("phase");
    Ok(Pod {
        settings: Arc::new(settings),
        uid: pod_uid(metadata)?,
        labels: security::labels(&metadata.get("labels"))?,
        service_account: service_account(&spec)?.into(),
        node: spec.get("nodeName").text()?.filter(|node| !node.is_empty()).map(Into::into),
        addresses: pod_addresses(&status)?,
        host_network: spec.get("hostNetwork").boolean()?.unwrap_or(false),
        finished: matches!(phase.text()?, Some("Succeeded" | "Failed")),
    })
}

/// What an object that cannot be read stands for, if for anything. Of a Namespace and a Pod, what can be read, with what is
/// in doubt: the index knows more.
fn unreadable(root: &Field<'_>, key: &Key) -> Option<Object> {
    match key.kind {
        Kind::Namespace => {
            let settings = annotations::readable(&root.get("metadata"), key.kind);
            Some(Object::Namespace(Arc::new(settings)))
        }
        Kind::Pod => {
            let metadata = root.get("metadata");
            pod(root, &metadata, annotations::readable(&metadata, key.kind)).map(Object::Pod).ok()
        }
        Kind::PeerAuthentication => Some(security::unreadable_peer_authentication(root)),
        Kind::AuthorizationPolicy => security::unreadable_authorization_policy(root, &key.name),
        _ => None,
    }
}

/// The UID by which the kubelet knows the pod: that of a static pod's mirror object is another.
fn pod_uid(metadata: &Field<'_>) -> Result<Option<PodUid>> {
    let annotations = metadata.mapping("annotations")?;
    let hash = annotations.get("kubernetes.io/config.hash");
    let own = metadata.get("uid");
    let uid = if hash.is_absent() { own.text()? } else { hash.text()? };
    Ok(uid.and_then(PodUid::parse))
}

/// Whoever may make a Pod in a cluster may not say that the network or the cgroup of another is its own.
fn distrust(pod: &mut Pod, root: &Field<'_>, notes: &mut Vec<FieldError>) {
    let metadata = root.get("metadata");
    let annotations = metadata.get("annotations");
    if pod.settings.netns.is_some() {
        Arc::make_mut(&mut pod.settings).netns = None;
        let field = annotations.get(annotations::NETNS);
        let message = "is not read in a cluster: a pod's network is found by the pod's UID".to_owned();
        notes.push(field.error(Reason::UnknownAnnotation, message, "Remove it."));
    }
    // In a manifest, a pod without a node is of this one.
    pod.node.get_or_insert_default();
    // A hash has no dashes, as all other UIDs have: with one, only a static pod can be meant.
    let is_hash = |uid: &PodUid| !uid.as_str().contains('-');
    let is_mirror = !annotations.get("kubernetes.io/config.mirror").is_absent();
    if !pod.uid.as_ref().is_some_and(is_hash) || !is_mirror {
        pod.uid = metadata.get("uid").text().ok().flatten().and_then(PodUid::parse).filter(|uid| !is_hash(uid));
    }
}

fn service_account<'a>(spec: &'a Field<'a>) -> Result<&'a str> {
    let name = spec.get("serviceAccountName");
    // `serviceAccount` is its older name, which the API server still fills in.
    let old = spec.get("serviceAccount");
    let field = if name.is_absent() { old } else { name };
    if field.text()?.is_none_or(str::is_empty) { Ok("default") } else { valid_name(&field) }
}

fn pod_addresses(status: &Field<'_>) -> Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    addresses.extend(status.get("podIP").address()?);
    let all = status.get("podIPs");
    for item in all.items()? {
        addresses.extend(item.get("ip").address()?.filter(|ip| !addresses.contains(ip)));
    }
    Ok(addresses)
}

fn service(spec: &Field<'_>, warnings: &mut Vec<FieldError>) -> Result<ServiceSpec> {
    let kind = spec.get("type");
    let named_elsewhere = kind.text()? == Some("ExternalName");
    let mut addresses = Vec::new();
    let one = spec.get("clusterIP");
    let all = spec.get("clusterIPs");
    for field in std::iter::once(one).chain(all.items()?) {
        if !named_elsewhere && field.text()? != Some("None") {
            addresses.extend(field.address()?.filter(|address| !addresses.contains(address)));
        }
    }
    if one.is_absent() && all.is_absent() && !named_elsewhere {
        let remedy = "Write spec.clusterIP: an address, or None if it is headless.";
        warnings.push(one.error(Reason::BadField, "is missing: nothing can be sent to this service".into(), remedy));
    }
    let affinity = spec.get("sessionAffinity");
    if affinity.text()? == Some("ClientIP") {
        warnings.push(affinity.bad("is not honoured by this version", "Set it to None, or expect any endpoint."));
    }

    let mut ports: Vec<(u16, Arc<str>)> = Vec::new();
    let fields = spec.get("ports");
    for item in fields.items()? {
        if !is_tcp(&item)? {
            continue;
        }
        let field = item.get("port");
        let port = field.port()?.ok_or_else(|| field.missing())?;
        if ports.iter().any(|(known, _)| *known == port) {
            return Err(field.bad("appears twice", "Give each TCP port of the service its own number."));
        }
        ports.push((port, item.get("name").text()?.unwrap_or_default().into()));
    }
    Ok(ServiceSpec { addresses, ports, distribution: distribution(spec)?, local_only: is_local_only(spec)? })
}

fn distribution(spec: &Field<'_>) -> Result<TrafficDistribution> {
    let field = spec.get("trafficDistribution");
    match field.text()? {
        None => Ok(TrafficDistribution::Any),
        Some("PreferSameZone" | "PreferClose") => Ok(TrafficDistribution::PreferSameZone),
        Some("PreferSameNode") => Ok(TrafficDistribution::PreferSameNode),
        Some(_) => Err(field.bad("is unknown", "Write PreferSameZone, PreferSameNode or PreferClose, or remove it.")),
    }
}

fn is_local_only(spec: &Field<'_>) -> Result<bool> {
    let field = spec.get("internalTrafficPolicy");
    match field.text()? {
        None | Some("Cluster") => Ok(false),
        Some("Local") => Ok(true),
        Some(_) => Err(field.bad("is unknown", "Write Cluster or Local, or remove it.")),
    }
}

fn is_tcp(port: &Field<'_>) -> Result<bool> {
    let field = port.get("protocol");
    match field.text()? {
        None | Some("" | "TCP") => Ok(true),
        Some("UDP" | "SCTP") => Ok(false),
        Some(_) => Err(field.bad("is not a protocol", "Write TCP, UDP or SCTP.")),
    }
}

fn slice(root: &Field<'_>, metadata: &Field<'_>, warnings: &mut Vec<FieldError>) -> Result<Slice> {
    let labels = metadata.mapping("labels")?;
    let label = labels.get("kubernetes.io/service-name");
    let service: Option<Arc<str>> = label.text()?.map(Into::into);
    if service.is_none() {
        let remedy = "Add the label kubernetes.io/service-name: NAME, unless no Service needs the slice.";
        warnings.push(label.error(Reason::BadField, "is missing: the slice serves no Service".into(), remedy));
    }

    let mut ports = Vec::new();
    let fields = root.get("ports");
    for item in fields.items()? {
        // A port without a number stands for all ports, which no Service port can be sent to.
        if let (true, Some(port)) = (is_tcp(&item)?, item.get("port").port()?) {
            ports.push((item.get("name").text()?.unwrap_or_default().into(), port));
        }
    }

    let kind = root.get("addressType");
    let mut endpoints = Vec::new();
    match kind.text()? {
        Some("IPv4" | "IPv6") => {
            let fields = root.get("endpoints");
            for item in fields.items()? {
                endpoints.push(endpoint(&item, warnings)?);
            }
        }
        Some("FQDN") => {}
        Some(_) => return Err(kind.bad("is unknown", "Write IPv4 or IPv6.")),
        None => return Err(kind.missing()),
    }
    Ok(Slice { service, ports, endpoints })
}

fn endpoint(item: &Field<'_>, warnings: &mut Vec<FieldError>) -> Result<SliceEndpoint> {
    let fields = item.get("addresses");
    let mut addresses = Vec::new();
    for address in fields.items()? {
        addresses.push(address.address()?.ok_or_else(|| address.missing())?);
    }
    let [address, others @ ..] = addresses.as_slice() else { return Err(fields.missing()) };
    if !others.is_empty() {
        // As kube-proxy does: the API gives further addresses of one endpoint no meaning.
        let message = format!("only the first of {} addresses is used", addresses.len());
        warnings.push(fields.error(Reason::BadField, message, "Write one endpoint per address."));
    }
    let conditions = item.mapping("conditions")?;
    let ready = conditions.get("ready").boolean()?.unwrap_or(true);
    let serving = conditions.get("serving").boolean()?.unwrap_or(ready);
    let terminating = conditions.get("terminating").boolean()?.unwrap_or(false);
    let text = |key| item.get(key).text().map(|text| text.filter(|text| !text.is_empty()).map(Into::into));
    Ok(SliceEndpoint {
        address: *address,
        ready,
        draining: serving && terminating,
        node: text("nodeName")?,
        zone: text("zone")?,
    })
}

fn node(root: &Field<'_>, metadata: &Field<'_>) -> Result<NodeSpec> {
    let labels = metadata.mapping("labels")?;
    let zone = labels.get("topology.kubernetes.io/zone").text()?.filter(|zone| !zone.is_empty());
    let status = root.mapping("status")?;
    let fields = status.get("addresses");
    let mut addresses = Vec::new();
    for item in fields.items()? {
        if let Some("InternalIP" | "ExternalIP") = item.get("type").text()? {
            addresses.extend(item.get("address").address()?.filter(|address| !addresses.contains(address)));
        }
    }
    Ok(NodeSpec { zone: zone.map(Into::into), addresses })
}
