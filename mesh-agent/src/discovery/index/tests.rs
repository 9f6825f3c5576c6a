use super::*;
use crate::model::SharedMap;
use crate::{
    discovery::{parse, store::Store},
    model::{Former, Left, Mode, TrafficDistribution},
};

mod incremental;
mod reference;

/// An index of node `here` that is fed with texts.
pub(super) struct Fixture {
    store: Store,
    index: Index,
    known: BTreeSet<Key>,
    pub(super) netns: BTreeMap<PathBuf, u64>,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let netns = BTreeMap::from([("/run/netns/web-0".into(), 1), ("/run/netns/web-1".into(), 2)]);
        Self { store: Store::default(), index: Index::new(Site::here(100)), known: BTreeSet::new(), netns }
    }

    /// The same after another agent.
    pub(super) fn after(former: Former) -> Self {
        Self { index: Index::new(Site { former: Arc::new(former), ..Site::here(100) }), ..Self::new() }
    }

    /// The same in another trust domain.
    pub(super) fn of(trust_domain: &str) -> Self {
        Self { index: Index::new(Site { trust_domain: trust_domain.into(), ..Site::here(100) }), ..Self::new() }
    }

    fn write(&mut self, name: &str, text: &str) -> &mut Self {
        let path = Arc::new(PathBuf::from(name));
        let read = parse::file(&path, text);
        self.store.put(path, read);
        self
    }

    fn update(&mut self) -> Option<Arc<Mesh>> {
        let in_force = self.store.in_force();
        let source = SourceState { objects: in_force.objects.len(), ..SourceState::default() };
        let keys: BTreeSet<Key> = in_force.objects.iter().map(|loaded| loaded.key.clone()).collect();
        let gone = self.known.difference(&keys).cloned().map(Change::Remove);
        let changes: Vec<_> = gone.chain(in_force.objects.into_iter().map(Change::Put)).collect();
        self.known = keys;
        let surroundings =
            Surroundings { problems: in_force.problems.into(), netns: Arc::new(self.netns.clone()), source };
        self.index.apply(changes, &surroundings)
    }

    /// Replaces file `a` and returns the snapshot.
    pub(super) fn mesh(&mut self, text: &str) -> Arc<Mesh> {
        self.write("a", text).current()
    }

    fn current(&mut self) -> Arc<Mesh> {
        self.update().unwrap_or_else(|| Arc::clone(&self.index.mesh))
    }
}

fn mesh(text: &str) -> Arc<Mesh> {
    Fixture::new().mesh(text)
}

fn workload<'a>(mesh: &'a Mesh, name: &str) -> &'a Arc<Workload> {
    mesh.workloads.get(&ObjectName::new("shop", name)).unwrap()
}

fn destination<'a>(mesh: &'a Mesh, address: &str) -> &'a Target {
    mesh.destination(address.parse().unwrap()).unwrap()
}

fn service<'a>(mesh: &'a Mesh, address: &str) -> &'a Arc<Service> {
    match destination(mesh, address) {
        Target::Service(service) => service,
        Target::Workload(_) => panic!("{address} is a pod"),
    }
}

/// Last parts of the addresses of the endpoints of a service's first port.
fn endpoints(mesh: &Mesh, address: &str) -> Vec<String> {
    service(mesh, address).ports[0].endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

fn problems(mesh: &Mesh) -> Vec<String> {
    mesh.problems.iter().map(ToString::to_string).collect()
}

const NAMESPACE: &str = "
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {mesh-agent.io/mesh: enabled}}
";

fn pod(name: &str, ip: &str) -> String {
    pod_with(name, ip, "")
}

fn pod_with(name: &str, ip: &str, annotations: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, annotations: {{mesh-agent.io/netns: {name}, {annotations}}}}}
status: {{podIP: {ip}, phase: Running}}
"
    )
}

const SERVICE: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80, name: http}]}
";

fn slice(name: &str, endpoints: &str) -> String {
    format!(
        "
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}, {{name: other, port: 9090}}]
endpoints: [{endpoints}]
"
    )
}

fn endpoint(ip: &str) -> String {
    format!("{{addresses: [{ip}]}}, ")
}

fn shop() -> String {
    [
        NAMESPACE,
        &pod("web-0", "10.0.0.1"),
        &pod("web-1", "10.0.0.2"),
        SERVICE,
        &slice("web-1", &(endpoint("10.0.0.1") + &endpoint("10.0.0.2"))),
    ]
    .concat()
}

#[test]
fn a_shop_is_joined() {
    let mesh = mesh(&shop());
    assert_eq!(problems(&mesh), [""; 0]);
    assert_eq!(mesh.namespaces, SharedMap::from([("shop".into(), true)]));
    let web = workload(&mesh, "web-0");
    assert!(web.enrolled && web.is_on("here"));
    assert_eq!(web.netns.as_deref(), Some("/run/netns/web-0".as_ref()));
    assert!(Arc::ptr_eq(mesh.workload_at("10.0.0.1".parse().unwrap()).unwrap(), web));
    let port = &service(&mesh, "10.96.0.1").ports[0];
    assert_eq!((port.port, &*port.name), (80, "http"));
    assert_ne!(port.list, 0);
    let ports: Vec<_> = port.endpoints.iter().map(|endpoint| endpoint.port).collect();
    assert_eq!(ports, [8080, 8080]);
    assert!(Arc::ptr_eq(port.endpoints[0].workload.as_ref().unwrap(), web));
    assert_eq!(port.endpoints[0].node.as_deref(), Some("here"));
}

#[test]
fn pods_inherit_from_their_namespace_key_by_key() {
    let namespace = NAMESPACE.replace(
        "enabled",
        "enabled, mesh-agent.io/mode: strict, mesh-agent.io/exclude-outbound-ports: '5432',
         mesh-agent.io/exclude-inbound-ports: '22', mesh-agent.io/exclude-outbound-cidrs: 10.9.0.0/16",
    );
    let own =
        "mesh-agent.io/mesh: disabled, mesh-agent.io/exclude-outbound-ports: '9090', mesh-agent.io/mode: permissive,
               mesh-agent.io/exclude-inbound-ports: ''";
    let mesh = mesh(&(namespace + &pod("web-0", "10.0.0.1") + &pod_with("web-1", "10.0.0.2", own)));
    let inherited = workload(&mesh, "web-0");
    assert!(inherited.enrolled);
    assert_eq!(inherited.mode, Mode::Strict);
    assert_eq!(inherited.exclusions.outbound_ports, [5432]);
    assert_eq!(inherited.exclusions.inbound_ports, [22]);
    let own = workload(&mesh, "web-1");
    assert!(!own.enrolled);
    assert_eq!(own.mode, Mode::Permissive);
    assert_eq!(own.exclusions.outbound_ports, [9090]);
    assert_eq!(own.exclusions.inbound_ports, [0; 0]);
    assert_eq!(own.exclusions.outbound_cidrs.len(), 1);
}

#[test]
fn finished_pods_are_gone_and_give_their_address_back() {
    let finished = pod("web-0", "10.0.0.1").replace("Running", "Succeeded");
    let mesh = mesh(&(finished + &pod("web-1", "10.0.0.1")));
    assert_eq!(problems(&mesh), [""; 0]);
    assert_eq!(mesh.workloads.len(), 1);
    assert_eq!(&*mesh.workload_at("10.0.0.1".parse().unwrap()).unwrap().name.name, "web-1");
}

#[test]
fn endpoints_are_the_usable_ones_of_all_slices_each_once() {
    let slices = slice("web-b", "{addresses: [10.0.0.2], conditions: {ready: false}}, {addresses: [10.0.0.9]}")
        + &slice("web-a", &(endpoint("10.0.0.2") + &endpoint("10.0.0.1")));
    let mesh = mesh(&(shop() + &slices));
    assert_eq!(endpoints(&mesh, "10.96.0.1"), ["10.0.0.1", "10.0.0.2", "10.0.0.9"]);
    assert!(service(&mesh, "10.96.0.1").ports[0].endpoints[2].workload.is_none());
}

#[test]
fn near_endpoints_are_preferred_where_the_service_says_so() {
    let node = |name, zone| {
        format!(
            "\n---\n{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}},
              status: {{addresses: [{{type: InternalIP, address: 192.0.2.1}}, {{type: Hostname, address: h}}]}}}}\n"
        )
    };
    let slice = slice(
        "web-1",
        "{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], nodeName: here}, {addresses: [10.0.0.3], nodeName: near},
         {addresses: [10.0.0.4], zone: b}",
    );
    // 10.0.0.1 is a pod of no named node: in manifests that is this one.
    let rest = pod("web-0", "10.0.0.1") + &node("here", "a") + &node("near", "a") + &node("far", "b") + &slice;
    for (distribution, expected) in [
        ("{}", "1 2 3 4"),
        ("{trafficDistribution: PreferSameZone}", "1 2 3"),
        ("{trafficDistribution: PreferSameNode}", "1 2"),
        ("{internalTrafficPolicy: Local}", "1 2"),
    ] {
        let more = distribution.trim_matches(['{', '}']);
        let service =
            SERVICE.replace("clusterIP:", &format!("{more}{}clusterIP:", if more.is_empty() { "" } else { ", " }));
        let mesh = mesh(&(service + &rest));
        assert_eq!(problems(&mesh), [""; 0]);
        let last = |address: String| address.rsplit('.').next().unwrap().to_owned();
        let endpoints: Vec<_> = endpoints(&mesh, "10.96.0.1").into_iter().map(last).collect();
        assert_eq!(endpoints.join(" "), expected, "{distribution}");
        assert_eq!((mesh.node.zone.as_deref(), mesh.node.addresses.len()), (Some("a"), 1));
    }
    assert_eq!(TrafficDistribution::default(), TrafficDistribution::Any);
}

#[test]
fn a_dual_stack_service_leads_to_endpoints_of_the_family_asked_for() {
    let service = SERVICE.replace("clusterIP: 10.96.0.1", "clusterIPs: [10.96.0.1, 'fd00::1']");
    let v6 = slice("web-6", &endpoint("'fd00::2'")).replace("IPv4", "IPv6");
    let mesh = mesh(&(service + &slice("web-4", &endpoint("10.0.0.1")) + &v6));
    assert_eq!(endpoints(&mesh, "10.96.0.1"), ["10.0.0.1"]);
    assert_eq!(endpoints(&mesh, "fd00::1"), ["fd00::2"]);
}

#[test]
fn unchanged_things_are_the_very_same() {
    let mut fixture = Fixture::new();
    let before = fixture.mesh(&shop());
    assert_eq!(before.version, 1);
    assert!(fixture.update().is_none(), "nothing changed: nothing to publish");
    fixture.write("z", &pod("other", "10.0.0.3"));
    let after = fixture.current();
    assert_eq!(after.version, 2);
    assert!(Arc::ptr_eq(workload(&before, "web-0"), workload(&after, "web-0")));
    assert!(Arc::ptr_eq(service(&before, "10.96.0.1"), service(&after, "10.96.0.1")));
    let address = "10.96.0.1".parse().unwrap();
    assert_eq!(before.generation_of(address), after.generation_of(address));
}

#[test]
fn moving_an_object_in_its_file_voids_no_decision() {
    let mut fixture = Fixture::new();
    let before = fixture.mesh(&shop());
    let after = fixture.mesh(&("# a comment\n\n".to_owned() + &shop()));
    assert_ne!(workload(&before, "web-0").location, workload(&after, "web-0").location);
    assert_eq!(before.generations, after.generations);
    let lists = |mesh: &Mesh| Arc::clone(&service(mesh, "10.96.0.1").ports[0].endpoints);
    assert!(Arc::ptr_eq(&lists(&before), &lists(&after)));
}

/// Which of the shop's addresses got a new generation by going from [`shop`] to `text`.
fn voided(change: impl FnOnce(&mut Fixture) -> Arc<Mesh>) -> String {
    let mut fixture = Fixture::new();
    let before = fixture.mesh(&shop());
    let after = change(&mut fixture);
    let mut voided = Vec::new();
    for address in ["10.0.0.1", "10.0.0.2", "10.96.0.1"] {
        let slot = slot(address.parse().unwrap());
        if before.generation(slot) != after.generation(slot) {
            voided.push(address);
        }
    }
    voided.join(" ")
}

#[test]
fn generations_change_with_what_decisions_rest_on() {
    let web_1 = pod("web-1", "10.0.0.2");
    let edited = |from: &str, to: &str| {
        let text = shop();
        assert!(text.contains(from));
        let text = text.replace(from, to);
        voided(|fixture| fixture.mesh(&text))
    };
    assert_eq!(voided(|fixture| fixture.mesh(&shop())), "");
    assert_eq!(edited("mesh: enabled", "mesh: disabled"), "10.0.0.1 10.0.0.2 10.96.0.1");
    assert_eq!(edited(&web_1, &pod_with("web-1", "10.0.0.2", "mesh-agent.io/mode: strict")), "10.0.0.2 10.96.0.1");
    assert_eq!(edited(&web_1, ""), "10.0.0.2 10.96.0.1");
    assert_eq!(edited(&web_1, &web_1.replace("status:", "spec: {nodeName: far}\nstatus:")), "10.0.0.2 10.96.0.1");
    assert_eq!(edited(SERVICE, ""), "10.96.0.1");
    assert_eq!(edited("port: 80,", "port: 81,"), "10.96.0.1");
    assert_eq!(edited("port: 8080", "port: 8081"), "10.96.0.1");
    // Of a port that the service does not have.
    assert_eq!(edited("port: 9090", "port: 9091"), "");
    assert_eq!(edited(&endpoint("10.0.0.2"), ""), "10.96.0.1");
    assert_eq!(edited(&endpoint("10.0.0.2"), "{addresses: [10.0.0.2], conditions: {ready: false}}"), "10.96.0.1");
    // Another namespace behind the same name.
    let replaced = voided(|fixture| {
        fixture.netns.insert("/run/netns/web-1".into(), 9);
        fixture.current()
    });
    assert_eq!(replaced, "10.0.0.2 10.96.0.1");
}

#[test]
fn another_list_has_another_id_even_if_it_was_there_before() {
    let mut fixture = Fixture::new();
    let list = |mesh: &Mesh| service(mesh, "10.96.0.1").ports[0].list;
    let first = list(&fixture.mesh(&shop()));
    let second = list(&fixture.mesh(&shop().replace(&endpoint("10.0.0.2"), "")));
    let third = list(&fixture.mesh(&shop()));
    assert!(first != second && second != third && first != third);
}

#[test]
fn addresses_of_one_slot_share_its_generation() {
    let first: IpAddr = "10.0.0.1".parse().unwrap();
    let twin = (0..=u32::from(u16::MAX))
        .map(|low| IpAddr::V4((0x0a01_0000 | low).into()))
        .find(|address| slot(*address) == slot(first))
        .unwrap();
    let mut fixture = Fixture::new();
    let generations = |mesh: &Mesh| {
        let generation = |address| mesh.destination(address).map(|_| mesh.generation_of(address));
        (generation(first), generation(twin))
    };
    let (alone, _) = generations(&fixture.mesh(&pod("web-0", "10.0.0.1")));
    let (with_twin, twins) = generations(&fixture.mesh(&(pod("web-0", "10.0.0.1") + &pod("twin", &twin.to_string()))));
    assert_ne!(alone, with_twin);
    assert_eq!(with_twin, twins);
    let (again_alone, _) = generations(&fixture.mesh(&pod("web-0", "10.0.0.1")));
    assert_ne!(with_twin, again_alone);
    let gone = fixture.mesh("");
    assert_ne!(Some(gone.generation(slot(first))), again_alone);
}

#[test]
fn who_has_an_address_keeps_it() {
    let mut fixture = Fixture::new();
    let mesh = fixture.mesh(&(pod("web-0", "10.0.0.1") + &pod("web-1", "10.0.0.1")));
    assert_eq!(mesh.workloads.len(), 1);
    let expected = "duplicate_address a:9 Pod shop/web-1 status.podIPs: 10.0.0.1 is already the address of Pod shop/web-0 \
                    (a:3) (Give each its own address; until then the first one keeps it.)";
    assert_eq!(problems(&mesh), [expected]);
    // Now one comes that sorts before.
    let mesh = fixture.mesh(&(SERVICE.replace("10.96.0.1", "10.0.0.1") + &pod("web-0", "10.0.0.1")));
    assert_eq!(&*mesh.workload_at("10.0.0.1".parse().unwrap()).unwrap().name.name, "web-0");
    assert_eq!(mesh.problems.len(), 1);
    assert!(problems(&mesh)[0].contains("Service shop/web spec.clusterIPs: 10.0.0.1 is already"), "{mesh:?}");
    let mesh = fixture.mesh(&SERVICE.replace("10.96.0.1", "10.0.0.1"));
    assert_eq!(&*service(&mesh, "10.0.0.1").name.name, "web");
}

#[test]
fn pods_that_cannot_be_captured_are_reported() {
    let unnamed = pod("web-0", "10.0.0.1").replace("mesh-agent.io/netns: web-0, ", "");
    let elsewhere = |pod: &str| pod.replace("status:", "spec: {nodeName: far}\nstatus:");
    let host = pod("web-0", "192.0.2.1").replace("status:", "spec: {hostNetwork: true}\nstatus:");
    for (pods, expected) in [
        (pod("web-0", "10.0.0.1"), ""),
        (unnamed.clone(), "netns_unnamed"),
        (elsewhere(&unnamed), ""),
        (host.clone(), "host_network"),
        (pod("absent", "10.0.0.1"), "netns_missing"),
        (elsewhere(&pod("absent", "10.0.0.1")), ""),
        (pod_with("absent", "10.0.0.1", "mesh-agent.io/mesh: disabled"), ""),
        (pod("web-0", "10.0.0.1") + &pod("web-1", "10.0.0.2").replace("netns: web-1", "netns: web-0"), "bad_field"),
        (pod("web-0", "10.0.0.1") + &host.replace("web-0", "node-1"), "host_network"),
    ] {
        let mesh = mesh(&(NAMESPACE.to_owned() + &pods));
        let reasons: Vec<_> = mesh.problems.iter().map(|problem| problem.reason.code()).collect();
        assert_eq!(reasons.join(" "), expected, "{pods}");
        // Reported, not dropped.
        let count = pods.matches("kind: Pod").count();
        assert_eq!(mesh.workloads.len(), count);
        assert!(mesh.destination("192.0.2.1".parse().unwrap()).is_none(), "the node's address is nobody's");
    }
    let missing = mesh(&(NAMESPACE.to_owned() + &pod("absent", "10.0.0.1")));
    let expected = "netns_missing a:10 Pod shop/absent metadata.annotations[mesh-agent.io/netns]: \"/run/netns/absent\" is not \
                    a network namespace, or does not exist (Create it, or correct the annotation mesh-agent.io/netns.)";
    assert_eq!(problems(&missing), [expected]);
}

#[test]
fn what_cannot_be_read_leaves_pods_as_an_earlier_agent_left_them() {
    let left = Left { mode: Mode::Strict, ..Left::default() };
    // The namespace of web-0 only.
    let former = Former { is_known: true, by_netns: [(1, left)].into(), ..Former::default() };
    let mut fixture = Fixture::after(former);
    let remote = |name: &str, ip: &str, annotations: &str| {
        pod_with(name, ip, annotations).replace("\nstatus:", "\nspec: {nodeName: there}\nstatus:")
    };
    let told = r#"mesh-agent.io/status: '{"state":"armed","mode":"strict","since":""}'"#;
    let pods = pod("web-0", "10.0.0.1")
        // What the kernel does not have was released, whatever is written at the pod.
        + &pod_with("web-1", "10.0.0.2", told)
        + &remote("far-0", "10.0.1.1", told)
        + &remote("far-1", "10.0.1.2", "");
    let enrolled = |mesh: &Mesh| {
        ["web-0", "web-1", "far-0", "far-1"].map(|name| {
            let workload = workload(mesh, name);
            (workload.enrolled, workload.mode)
        })
    };
    let (strict, off) = ((true, Mode::Strict), (false, Mode::Permissive));
    let mesh = fixture.mesh(&(NAMESPACE.replace("enabled", "on") + &pods));
    assert_eq!(enrolled(&mesh)[0], strict);
    assert_eq!(enrolled(&mesh)[1], off);
    // Of other nodes it is known what their agents have written.
    assert_eq!(enrolled(&mesh)[2..], [strict, off]);
    let told = problems(&mesh);
    assert_eq!(told.len(), 3, "of the namespace and the two pods that are here: {told:?}");
    // A good version ends all doubt, also for later.
    let mesh = fixture.mesh(&(NAMESPACE.replace("enabled", "disabled") + &pods));
    assert_eq!(enrolled(&mesh), [off; 4]);
    assert_eq!(problems(&mesh), [""; 0]);
    let mesh = fixture.mesh(&(NAMESPACE.replace("enabled", "on") + &pods));
    assert_eq!(enrolled(&mesh), [off; 4], "the last good version");
}
