use super::*;
use crate::{
    discovery::object::{Netns, Settings},
    model::Mode,
};

fn parsed(text: &str) -> Parsed {
    file(&Arc::new("a.yaml".into()), text).unwrap()
}

fn only(text: &str) -> Object {
    let parsed = parsed(text);
    assert_eq!(parsed.problems, [], "{text}");
    assert_eq!(parsed.entries.len(), 1);
    Object::clone(parsed.entries[0].object.as_ref().unwrap())
}

fn pod(text: &str) -> Pod {
    match only(text) {
        Object::Pod(pod) => pod,
        other => panic!("{other:?}"),
    }
}

/// As `kubectl get pod -o yaml` prints it, with all that we do not read.
const FROM_KUBECTL: &str = r#"
apiVersion: v1
kind: List
metadata:
  resourceVersion: ""
items:
- apiVersion: v1
  kind: Pod
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"v1","kind":"Pod","metadata":{"annotations":{"mesh-agent.io/mode":"strict"}}}
      mesh-agent.io/mode: strict
      mesh-agent.io/netns: web-0
      mesh-agent.io/status-armed: "true"
    creationTimestamp: "2026-08-01T10:00:00Z"
    generateName: web-
    labels:
      app: web
      mesh-agent.io/mesh: enabled
    managedFields:
    - apiVersion: v1
      fieldsType: FieldsV1
      fieldsV1:
        f:metadata:
          f:labels:
            .: {}
            f:app: {}
      manager: kubectl
      operation: Update
    name: web-0
    namespace: shop
    ownerReferences:
    - {apiVersion: apps/v1, kind: ReplicaSet, name: web, uid: 4a7c9b1e-0000-0000-0000-000000000000, controller: true}
    uid: 0f1f3f5f-0000-0000-0000-000000000000
  spec:
    containers:
    - image: example.org/web:1
      name: web
      ports:
      - containerPort: 8080
        protocol: TCP
    nodeName: node-a
    serviceAccount: web
    serviceAccountName: web
    tolerations:
    - effect: NoExecute
      tolerationSeconds: 300
  status:
    conditions:
    - {lastProbeTime: null, status: "True", type: Ready}
    hostIP: 192.0.2.10
    phase: Running
    podIP: 10.0.0.1
    podIPs:
    - ip: 10.0.0.1
    - ip: fd00::1
    qosClass: BestEffort
"#;

#[test]
fn a_pod_as_kubectl_prints_it() {
    let parsed = parsed(FROM_KUBECTL);
    assert_eq!(parsed.problems, []);
    let entry = &parsed.entries[0];
    assert_eq!(entry.key.to_string(), "Pod shop/web-0");
    assert_eq!(entry.location.to_string(), "a.yaml:7");
    let expected = Pod {
        settings: Arc::new(Settings {
            mesh: Some(true),
            mode: Some(Mode::Strict),
            netns: Some(Netns { path: "/run/netns/web-0".into(), line: 14 }),
            ..Settings::default()
        }),
        uid: PodUid::parse("0f1f3f5f-0000-0000-0000-000000000000"),
        labels: [("app".into(), "web".into()), ("mesh-agent.io/mesh".into(), "enabled".into())].into(),
        service_account: "web".into(),
        node: Some("node-a".into()),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        host_network: false,
        finished: false,
    };
    assert_eq!(**entry.object.as_ref().unwrap(), Object::Pod(expected));
}

#[test]
fn a_pod_is_known_by_what_the_kubelet_names_its_cgroup_after() {
    let uid = |metadata: &str| {
        let text = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a, {metadata}}}}}");
        pod(&text).uid.map(|uid| uid.to_string())
    };
    let own = "uid: 0ac97719-15bc-46ab-9f97-46bc5ead7235";
    assert_eq!(uid(own).as_deref(), Some("0ac97719-15bc-46ab-9f97-46bc5ead7235"));
    let hash = "kubernetes.io/config.hash: e6484ad60ee4a4f8f9ac017dc410c5b8";
    let mirror = format!("{own}, annotations: {{{hash}}}");
    assert_eq!(uid(&mirror).as_deref(), Some("e6484ad60ee4a4f8f9ac017dc410c5b8"));
    assert_eq!(uid("uid: not-a-uid"), None);
    assert_eq!(uid(""), None);
}

#[test]
fn defaults_are_those_of_kubernetes() {
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: a}}";
    assert_eq!(parsed(text).entries[0].key.to_string(), "Pod default/a");
    let pod = pod(text);
    assert_eq!(&*pod.service_account, "default");
    assert_eq!(pod.node, None);
    assert!(!pod.host_network && !pod.finished && pod.addresses.is_empty());
    assert_eq!(*pod.settings, Settings::default());

    let Object::EndpointSlice(slice) = only(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}, {name: dns, port: 53, protocol: UDP}, {name: any}]
endpoints:
- addresses: [10.0.0.1]
- {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}, nodeName: n, zone: z}
- {addresses: [10.0.0.3], conditions: {ready: false, terminating: true}}
",
    ) else {
        panic!()
    };
    assert_eq!(slice.ports, [("".into(), 8080)]);
    let conditions: Vec<_> = slice.endpoints.iter().map(|endpoint| (endpoint.ready, endpoint.draining)).collect();
    assert_eq!(conditions, [(true, false), (false, true), (false, false)]);
    assert_eq!(slice.endpoints[1].zone.as_deref(), Some("z"));
}

#[test]
fn services_keep_their_tcp_ports_and_cluster_addresses() {
    let service =
        |spec: &str| match only(&format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {spec}}}")) {
            Object::Service(service) => service,
            other => panic!("{other:?}"),
        };
    let dual = service(
        "{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1'], trafficDistribution: PreferClose,
          ports: [{port: 80, name: http, targetPort: web}, {port: 53, protocol: UDP}]}",
    );
    assert_eq!(dual.addresses.len(), 2);
    assert_eq!(dual.ports, [(80, "http".into())]);
    assert_eq!(dual.distribution, TrafficDistribution::PreferSameZone);
    assert_eq!(service("{clusterIP: None, ports: []}").addresses, Vec::<IpAddr>::new());
    assert_eq!(service("{type: ExternalName, externalName: example.org}").addresses, Vec::<IpAddr>::new());
    assert!(service("{clusterIP: 10.96.0.1, internalTrafficPolicy: Local}").local_only);
}

#[test]
fn exclusions_are_lists_of_ports_and_blocks() {
    let settings = |annotations: &str| {
        pod(&format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a, annotations: {{{annotations}}}}}}}")).settings
    };
    let ports =
        |list: &str| settings(&format!("mesh-agent.io/exclude-outbound-ports: '{list}'")).outbound_ports.clone();
    assert_eq!(ports("9090, 80,8000-8002,80"), Some(vec![80, 8000, 8001, 8002, 9090]));
    assert_eq!(ports(""), Some(vec![]));
    assert_eq!(ports("1-256").unwrap().len(), 256);
    assert_eq!(settings("mesh-agent.io/exclude-inbound-ports: 22").inbound_ports, Some(vec![22]));
    let cidrs = settings("mesh-agent.io/exclude-inbound-cidrs: '10.1.2.3/8, fd00::1,::ffff:10.9.0.0/112'")
        .inbound_cidrs
        .clone();
    let expected = ["10.0.0.0/8", "10.9.0.0/16", "fd00::1/128"];
    assert_eq!(cidrs, Some(expected.map(|cidr| cidr.parse().unwrap()).to_vec()));
    let netns = settings("mesh-agent.io/netns: /proc/7/ns/net").netns.clone();
    assert_eq!(netns.unwrap().path, PathBuf::from("/proc/7/ns/net"));
    // The annotation wins over the label.
    let text = "{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {mesh-agent.io/mesh: enabled},
                 annotations: {mesh-agent.io/mesh: disabled}}}";
    let Object::Namespace(both) = only(text) else { panic!() };
    assert_eq!(both.mesh, Some(false));
}

#[test]
fn errors_name_line_object_field_value_and_remedy() {
    let on_pod = |rest: &str| format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n{rest}");
    let annotated = |annotation: &str| on_pod(&format!("  annotations:\n    {annotation}\n"));
    let service = |spec: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec:\n  {spec}\n");
    for (text, expected) in [
        (
            annotated("mesh-agent.io/mesh: enable"),
            "unknown_annotation a.yaml:6 Pod default/a metadata.annotations[mesh-agent.io/mesh]: \"enable\" is not one of \
             enabled, disabled (Write enabled or disabled.)",
        ),
        (annotated("mesh-agent.io/mesh:"), "unknown_annotation a.yaml:6 * \"\" is not one of enabled, disabled *"),
        (annotated("mesh-agent.io/mesh: true"), "* \"true\" is not one of enabled, disabled *"),
        (annotated("mesh-agent.io/mode: stirct"), "* \"stirct\" is not one of permissive, strict, disabled *"),
        (
            annotated("mesh-agent.io/mseh: enabled"),
            "* mesh-agent.io/mseh is unknown (Did you mean mesh-agent.io/mesh?)",
        ),
        (
            annotated("mesh-agent.io/exclude-outbound-port: 80"),
            "* mesh-agent.io/exclude-outbound-port is unknown (Did you mean mesh-agent.io/exclude-outbound-ports?)",
        ),
        (
            annotated("mesh-agent.io/frobnicate: 'on'"),
            "* mesh-agent.io/frobnicate is unknown (Remove it, or use one of *",
        ),
        (annotated("mesh-agent.io/exclude-inbound-ports: 80,http"), "* \"http\" is not a port or a range *"),
        (annotated("mesh-agent.io/exclude-inbound-ports: 90-80"), "* \"90-80\" is not a port or a range *"),
        (annotated("mesh-agent.io/exclude-inbound-ports: 0"), "* \"0\" is not a port or a range *"),
        (annotated("mesh-agent.io/exclude-inbound-ports: 1-257"), "* more than 256 ports, at \"1-257\" *"),
        (annotated("mesh-agent.io/exclude-inbound-cidrs: 10.0.0.0/33"), "* \"10.0.0.0/33\" is not a CIDR *"),
        (annotated("mesh-agent.io/netns: a/b"), "* \"a/b\" is neither a name nor an absolute path *"),
        (annotated("mesh-agent.io/netns: .."), "* \"..\" is neither a name nor an absolute path *"),
        (
            on_pod("  labels:\n    mesh-agent.io/mode: strict\n"),
            "unknown_annotation a.yaml:6 Pod default/a metadata.labels[mesh-agent.io/mode]: mesh-agent.io/mode is not read \
             as a label (Make it an annotation.)",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: n\n  annotations: {mesh-agent.io/netns: x}".into(),
            "* Namespace n * mesh-agent.io/netns has no meaning on a Namespace *",
        ),
        (
            on_pod("spec: {hostNetwork: 'yes'}"),
            "bad_field a.yaml:5 Pod default/a spec.hostNetwork: \"yes\" is not true or false *",
        ),
        (on_pod("spec: [1]"), "bad_field a.yaml:5 Pod default/a spec: a list is not a mapping *"),
        (
            on_pod("status:\n  podIPs:\n  - ip: 10.0.0.1\n  - ip: 10.0.0\n"),
            "bad_field a.yaml:8 Pod default/a status.podIPs[1].ip: \"10.0.0\" is not an IP *",
        ),
        (on_pod("status: {podIP: 127.0.0.1}"), "* \"127.0.0.1\" is not an address that others can reach *"),
        (on_pod("  namespace: Shop"), "bad_field a.yaml:5 Pod metadata.namespace: \"Shop\" is not a name *"),
        ("kind: Pod\nmetadata: {name: a}".into(), "bad_field a.yaml:1 apiVersion: is missing (Add apiVersion: v1.)"),
        ("apiVersion: v1\nkind: Pod\nspec: {}".into(), "bad_field a.yaml:1 Pod metadata.name: is missing (Add it.)"),
        ("a: b".into(), "unknown_kind a.yaml:1 kind: a document without a kind *"),
        (
            "apiVersion: mesh-agent.io/v1\nkind: Frob\nmetadata: {name: a}".into(),
            "unknown_kind a.yaml:1 Frob apiVersion: Frob of mesh-agent.io/v1 is not read by this version *",
        ),
        (
            service("ports: [{port: 65536}]\n  clusterIP: None"),
            "bad_field a.yaml:5 Service default/s spec.ports[0].port: \"65536\" is not a port, 1 to 65535 *",
        ),
        (service("ports: [{port: 80}, {port: 80}]\n  clusterIP: None"), "* spec.ports[1].port: \"80\" appears twice *"),
        (service("ports: [{port: 80, protocol: tcp}]\n  clusterIP: None"), "* \"tcp\" is not a protocol *"),
        (service("trafficDistribution: Near\n  clusterIP: None"), "* spec.trafficDistribution: \"Near\" is unknown *"),
        (
            service("ports: []"),
            "bad_field a.yaml:4 Service default/s spec.clusterIP: is missing: nothing can be sent *",
        ),
    ] {
        let problems: Vec<_> = parsed(&text).problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 1, "{text}\n{problems:#?}");
        let mut rest = problems[0].as_str();
        for part in expected.split('*') {
            let at = rest.find(part).unwrap_or_else(|| panic!("{expected}\n{problems:#?}"));
            rest = &rest[at + part.len()..];
        }
        assert!(expected.ends_with('*') || rest.is_empty(), "{expected}\n{problems:#?}");
    }
}

#[test]
fn other_kinds_are_counted_and_not_reported() {
    let parsed = parsed(
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a, annotations: {mesh-agent.io/x: y}}}
---
{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: a}}
---
# nothing
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: shop}}
",
    );
    assert_eq!((parsed.ignored, parsed.problems.len()), (2, 0));
    let keys: Vec<_> = parsed.entries.iter().map(|entry| entry.key.to_string()).collect();
    assert_eq!(keys, ["ServiceAccount shop/web"]);
}

#[test]
fn one_bad_object_does_not_hide_the_others() {
    let parsed = parsed(
        "{apiVersion: v1, kind: Pod, metadata: {name: a, annotations: {mesh-agent.io/mesh: maybe}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b}}
",
    );
    let usable: Vec<_> = parsed.entries.iter().map(|entry| (entry.key.to_string(), entry.object.is_some())).collect();
    assert_eq!(usable, [("Pod default/a".to_owned(), false), ("Pod default/b".to_owned(), true)]);
}

#[test]
fn broken_yaml_is_one_problem_with_a_line() {
    let problem = file(&Arc::new("a.yaml".into()), "a: b\nkind: [Pod\n").unwrap_err();
    assert_eq!((problem.reason, problem.location.line), (Reason::BadYaml, 3));
}
