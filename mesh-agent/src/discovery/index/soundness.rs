//! Generations against a naive view of the world, over random edits.

use std::fmt::Write;

use proptest::prelude::*;

use super::{tests::Fixture, *};
use crate::{
    discovery::{object::Pod, parse, store::Store},
    model::InboundPolicy,
};

/// A small world: every number is a choice, most of them collide with others now and then.
#[derive(Clone, Debug)]
struct World {
    enrolled: bool,
    /// Address (0: no such pod), mode, phase.
    pods: [(u8, bool, bool); 4],
    /// Address (0: none), port.
    services: [(u8, u8); 2],
    /// Service it belongs to, and for each endpoint its address (0: none) and whether it is ready.
    slices: [(u8, [(u8, bool); 3]); 3],
    /// For each policy (0: none, otherwise an action), whether it is for one pod only.
    policies: [(u8, bool); 2],
    /// Lines of comment before everything.
    comments: usize,
}

impl World {
    fn yaml(&self) -> String {
        let mut text = "#\n".repeat(self.comments);
        let mesh = if self.enrolled { "enabled" } else { "disabled" };
        let _ = writeln!(
            text,
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, annotations: {{mesh-agent.io/mesh: {mesh}}}}}}}"
        );
        for (index, (address, strict, finished)) in self.pods.iter().enumerate().filter(|(_, pod)| pod.0 > 0) {
            let mode = if *strict { "strict" } else { "permissive" };
            let phase = if *finished { "Failed" } else { "Running" };
            let _ = writeln!(
                text,
                "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p{index}, namespace: shop, labels: {{pod: p{index}}}, annotations: \
                 {{mesh-agent.io/mode: {mode}}}}}, status: {{podIP: 10.0.0.{address}, phase: {phase}}}}}"
            );
        }
        for (index, (action, selects)) in self.policies.iter().enumerate().filter(|(_, policy)| policy.0 > 0) {
            let action = ["", "ALLOW", "DENY", "AUDIT"][usize::from(*action)];
            let selector = if *selects { "selector: {matchLabels: {pod: p1}}, " } else { "" };
            let _ = writeln!(
                text,
                "---\n{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: a{index}, \
                 namespace: shop}}, spec: {{{selector}action: {action}}}}}"
            );
        }
        for (index, (address, port)) in self.services.iter().enumerate().filter(|(_, service)| service.0 > 0) {
            let _ = writeln!(
                text,
                "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{index}, namespace: shop}}, spec: \
                 {{clusterIP: 10.0.0.{address}, ports: [{{port: {}}}]}}}}",
                80 + port
            );
        }
        for (index, (service, endpoints)) in self.slices.iter().enumerate() {
            let endpoints: Vec<_> = endpoints
                .iter()
                .filter(|(address, _)| *address > 0)
                .map(|(address, ready)| format!("{{addresses: [10.0.0.{address}], conditions: {{ready: {ready}}}}}"))
                .collect();
            let endpoints = endpoints.join(", ");
            let _ = writeln!(
                text,
                "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: e{index}, namespace: shop, \
                 labels: {{kubernetes.io/service-name: s{service}}}}}, addressType: IPv4, ports: [{{port: 8080}}], \
                 endpoints: [{endpoints}]}}"
            );
        }
        text
    }
}

fn worlds() -> impl Strategy<Value = World> {
    let pod = (0..5_u8, any::<bool>(), prop::bool::weighted(0.1));
    let pods = [pod.clone(), pod.clone(), pod.clone(), pod];
    let service = (0..8_u8, 0..2_u8);
    let slice = || (0..2_u8, [(0..5_u8, any::<bool>()), (0..5_u8, any::<bool>()), (0..9_u8, any::<bool>())]);
    let policies = || (prop_oneof![1 => Just(0_u8), 1 => 1..4_u8], any::<bool>());
    let slices = [slice(), slice(), slice()];
    let services = [service.clone(), service];
    (prop::bool::weighted(0.8), pods, services, slices, [policies(), policies()], 0..3_usize).prop_map(
        |(enrolled, pods, services, slices, policies, comments)| World {
            enrolled,
            pods,
            services,
            slices,
            policies,
            comments,
        },
    )
}

/// One choice of `to` put into `from`, or none: most edits of a manifest are small.
fn edited(from: &World, to: &World, what: usize) -> World {
    let mut world = from.clone();
    match what {
        0 => world.enrolled = to.enrolled,
        1..=4 => world.pods[what - 1] = to.pods[what - 1],
        5..=6 => world.services[what - 5] = to.services[what - 5],
        7..=9 => world.slices[what - 7] = to.slices[what - 7],
        10 => world.comments = to.comments,
        11..=12 => world.policies[what - 11] = to.policies[what - 11],
        _ => world = to.clone(),
    }
    world
}

/// What a decision about an address rests on, written out without sharing, ids or order of files.
fn naive(mesh: &Mesh, address: IpAddr) -> String {
    let pod = |workload: &Workload| {
        let InboundPolicy { mode, ports, deny, allow, audit } = &*workload.policy;
        let objects =
            [deny, allow, audit].map(|list| list.iter().map(|object| object.name.to_string()).collect::<Vec<_>>());
        let policy = format!("{mode:?} {ports:?} {objects:?}");
        format!("pod {} {} {:?} {} {policy}", workload.name, workload.enrolled, workload.mode, workload.identity)
    };
    match mesh.destination(address) {
        None => "unknown".into(),
        Some(Target::Workload(workload)) => pod(workload),
        Some(Target::Service(service)) => {
            let mut text = format!("service {}", service.name);
            for port in &service.ports {
                let _ = write!(text, " {}:", port.port);
                for endpoint in &*port.endpoints {
                    let workload = endpoint.workload.as_deref().map(pod);
                    let _ = write!(text, " {}:{} {workload:?}", endpoint.address, endpoint.port);
                }
            }
            text
        }
    }
}

/// The pods and services of a text that nobody contests, by an own and simpler reading of it.
fn uncontested(text: &str) -> Vec<(IpAddr, String)> {
    let path = Arc::new(PathBuf::from("a"));
    let mut store = Store::default();
    store.put(Arc::clone(&path), parse::file(&path, text));
    let mut owners: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    for loaded in store.in_force().objects {
        let addresses = match &*loaded.object {
            Object::Pod(Pod { finished: false, addresses, .. }) => addresses,
            Object::Service(spec) => &spec.addresses,
            _ => continue,
        };
        for address in addresses {
            owners.entry(*address).or_default().push(loaded.key.name.to_string());
        }
    }
    let one =
        |(address, owners): (IpAddr, Vec<String>)| Some((address, <[String; 1]>::try_from(owners).ok()?.concat()));
    owners.into_iter().filter_map(one).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn generations_change_when_and_only_when_the_naive_view_does(
        start in worlds(),
        edits in prop::collection::vec((worlds(), 0..14_usize), 1..12),
    ) {
        let addresses: Vec<IpAddr> = (1..=9).map(|last| IpAddr::V4([10, 0, 0, last].into())).collect();
        let mut fixture = Fixture::new();
        let mut world = start;
        let mut before = fixture.mesh(&world.yaml());
        for (to, what) in edits {
            world = edited(&world, &to, what);
            let text = world.yaml();
            let after = fixture.mesh(&text);
            for address in &addresses {
                let slot = slot(*address);
                let changed = naive(&before, *address) != naive(&after, *address);
                let voided = before.generation(slot) != after.generation(slot);
                // The few addresses have slots of their own, so nothing else may void them.
                prop_assert_eq!(changed, voided, "{}: {} -> {}", address, naive(&before, *address), naive(&after, *address));
            }
            for (address, name) in uncontested(&text) {
                let known = after.destination(address).map(|known| match known {
                    Target::Workload(workload) => workload.name.to_string(),
                    Target::Service(service) => service.name.to_string(),
                });
                prop_assert_eq!(known, Some(name));
            }
            before = after;
        }
    }
}
