use super::super::tests::Fixture;
use crate::model::{InboundPolicy, Mesh, Mode, ObjectName, Pattern};
use std::sync::Arc;

fn pod(namespace: &str, name: &str, last: u8, labels: &str, annotations: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}, \
         annotations: {{{annotations}}}}}, spec: {{nodeName: far}}, status: {{podIP: 10.0.0.{last}}}}}\n"
    )
}

fn peer(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: {name}, namespace: {namespace}}}, \
         spec: {{{spec}}}}}\n"
    )
}

fn authorization(namespace: &str, name: &str, spec: &str) -> String {
    peer(namespace, name, spec).replace("PeerAuthentication", "AuthorizationPolicy")
}

fn namespace(mode: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, annotations: {{mesh-agent.io/mode: {mode}}}}}}}\n"
    )
}

/// Three pods: two of the shop, of which `web-0` has the label `app: web`, and one elsewhere.
fn pods() -> String {
    pod("shop", "web-0", 1, "app: web", "") + &pod("shop", "db-0", 2, "", "") + &pod("other", "x-0", 3, "app: web", "")
}

fn mesh(policies: &str) -> Arc<Mesh> {
    Fixture::new().mesh(&(pods() + policies))
}

fn of<'a>(mesh: &'a Mesh, namespace: &str, name: &str) -> &'a Arc<InboundPolicy> {
    &mesh.workloads.get(&ObjectName::new(namespace, name)).unwrap().policy
}

/// Modes of the three pods: of all ports, and of those that differ.
fn modes(mesh: &Mesh) -> String {
    let mode = |policy: &InboundPolicy| {
        let ports = policy.ports.iter().fold(String::new(), |text, (port, mode)| format!("{text},{port}:{mode}"));
        format!("{}{ports}", policy.mode)
    };
    [("shop", "web-0"), ("shop", "db-0"), ("other", "x-0")].map(|(ns, name)| mode(of(mesh, ns, name))).join(" ")
}

/// Names of the authorizations of a pod: denying, allowing, for the record.
fn authorizations(mesh: &Mesh, namespace: &str, name: &str) -> String {
    let policy = of(mesh, namespace, name);
    let names = |list: &[Arc<crate::model::Authorization>]| {
        list.iter().map(|object| object.name.to_string()).collect::<Vec<_>>().join("+")
    };
    [&policy.deny, &policy.allow, &policy.audit].map(|list| names(list)).join(" | ")
}

fn problems(mesh: &Mesh) -> Vec<String> {
    mesh.problems.iter().map(ToString::to_string).collect()
}

const STRICT: &str = "mtls: {mode: STRICT}";
const WEB: &str = "selector: {matchLabels: {app: web}}";

#[test]
fn the_narrowest_scope_that_sets_a_mode_has_it() {
    let web = |rest: &str| format!("{WEB}, {rest}");
    for (policies, expected) in [
        (String::new(), "permissive permissive permissive"),
        (peer("istio-system", "mesh", STRICT), "strict strict strict"),
        (peer("shop", "ns", STRICT), "strict strict permissive"),
        (peer("shop", "web", &web(STRICT)), "strict permissive permissive"),
        (
            peer("istio-system", "mesh", STRICT) + &peer("shop", "ns", "mtls: {mode: DISABLE}"),
            "disabled disabled strict",
        ),
        (peer("istio-system", "mesh", STRICT) + &peer("shop", "ns", "mtls: {mode: UNSET}"), "strict strict strict"),
        (
            peer("shop", "ns", STRICT) + &peer("shop", "web", &web("mtls: {mode: PERMISSIVE}")),
            "permissive strict permissive",
        ),
        (
            peer("shop", "ns", STRICT) + &peer("shop", "web", &web("portLevelMtls: {80: {mode: PERMISSIVE}}")),
            "strict,80:permissive strict permissive",
        ),
        (
            peer("shop", "web", &web("mtls: {mode: STRICT}, portLevelMtls: {80: {mode: UNSET}, 81: {mode: DISABLE}}")),
            "strict,81:disabled permissive permissive",
        ),
        (namespace("strict"), "strict strict permissive"),
        (peer("istio-system", "mesh", STRICT) + &namespace("permissive"), "permissive permissive strict"),
    ] {
        let mesh = mesh(&policies);
        assert_eq!(problems(&mesh), [""; 0], "{policies}");
        assert_eq!(modes(&mesh), expected, "{policies}");
    }
}

#[test]
fn in_one_scope_the_stricter_mode_wins_and_the_other_is_warned_of() {
    let mesh = mesh(&(namespace("permissive") + &peer("shop", "ns", STRICT)));
    assert_eq!(modes(&mesh), "strict strict permissive");
    let expected = "policy_conflict a:8 Namespace shop metadata.annotations[mesh-agent.io/mode]: permissive gives way to strict \
                    of PeerAuthentication shop/ns (a:10) (Leave one of them, or make them say the same.)";
    assert_eq!(problems(&mesh), [expected], "once, not for every pod");
    assert!(mesh.problems.iter().all(|problem| problem.severity == crate::model::Severity::Warning));

    let own = pod("shop", "own-0", 4, "app: web", "mesh-agent.io/mode: strict");
    let ports = "mtls: {mode: PERMISSIVE}, portLevelMtls: {80: {mode: DISABLE}}";
    let mesh = self::mesh(&(own + &peer("shop", "web", &format!("{WEB}, {ports}"))));
    assert_eq!(modes(&mesh), "permissive,80:disabled permissive permissive");
    let policy = of(&mesh, "shop", "own-0");
    assert_eq!((policy.mode, policy.mode_of(80)), (Mode::Strict, Mode::Strict));
    assert_eq!(mesh.problems.len(), 1);
    assert!(problems(&mesh)[0].contains("PeerAuthentication shop/web spec.mtls.mode: permissive gives way to strict"));
}

#[test]
fn a_selector_in_the_root_namespace_selects_no_mode() {
    let mesh = mesh(&peer("istio-system", "web", &format!("{WEB}, {STRICT}")));
    assert_eq!(modes(&mesh), "permissive permissive permissive");
    assert!(
        problems(&mesh)[0].starts_with("policy_unsupported a:8 PeerAuthentication istio-system/web spec.selector:")
    );
}

#[test]
fn authorizations_are_selected_by_namespace_root_and_labels() {
    let everybody = "rules: [{}]";
    let web = |rest: &str| format!("{WEB}, {rest}");
    let policies = authorization("shop", "z-all", everybody)
        + &authorization("shop", "a-web", &web("action: DENY"))
        + &authorization("istio-system", "mesh", "action: AUDIT")
        + &authorization("istio-system", "mesh-web", &web(""))
        + &authorization("other", "attached", "targetRefs: [{kind: Service, name: s}]")
        + &authorization("shop", "dry", "action: DENY")
            .replace("namespace: shop", "namespace: shop, annotations: {istio.io/dry-run: 'true'}");
    let mesh = mesh(&policies);
    let all = |name| authorizations(&mesh, if name == "x-0" { "other" } else { "shop" }, name);
    assert_eq!(all("web-0"), "shop/a-web | shop/z-all+istio-system/mesh-web | shop/dry+istio-system/mesh");
    assert_eq!(all("db-0"), " | shop/z-all | shop/dry+istio-system/mesh");
    assert_eq!(all("x-0"), " | istio-system/mesh-web | istio-system/mesh");
}

#[test]
fn whom_a_policy_in_force_selects_the_kernel_closes() {
    let kernel = |policies: &str| {
        let mesh = mesh(policies);
        mesh.workloads.get(&ObjectName::new("shop", "web-0")).unwrap().mode
    };
    assert_eq!(kernel(""), Mode::Permissive);
    assert_eq!(kernel(&authorization("shop", "a", "")), Mode::Strict);
    assert_eq!(kernel(&authorization("shop", "a", "action: DENY")), Mode::Strict);
    assert_eq!(kernel(&authorization("shop", "a", "action: AUDIT")), Mode::Permissive);
    let port = format!("{WEB}, mtls: {{mode: DISABLE}}, portLevelMtls: {{80: {{mode: STRICT}}}}");
    assert_eq!(kernel(&peer("shop", "web", &port)), Mode::Strict);
    assert_eq!(kernel(&peer("shop", "ns", "mtls: {mode: DISABLE}")), Mode::Disabled);
}

#[test]
fn workloads_with_the_same_policy_share_it_across_snapshots() {
    let mut fixture = Fixture::new();
    let text = pods() + &authorization("shop", "all", "rules: [{}]");
    let before = fixture.mesh(&text);
    assert!(Arc::ptr_eq(of(&before, "shop", "web-0"), of(&before, "shop", "db-0")));
    assert!(!Arc::ptr_eq(of(&before, "shop", "web-0"), of(&before, "other", "x-0")));
    // Read anew, moved, and with another pod.
    let after = fixture.mesh(&("# moved\n".to_owned() + &text + &pod("shop", "new-0", 4, "", "")));
    for name in ["web-0", "new-0"] {
        assert!(Arc::ptr_eq(of(&before, "shop", "db-0"), of(&after, "shop", name)), "{name}");
    }
    assert_eq!(before.policies, after.policies, "what is open need not be asked again");
}

#[test]
fn a_change_voids_the_decisions_of_those_it_touches_and_of_nobody_else() {
    let mut fixture = Fixture::new();
    let generations = |mesh: &Mesh| [1, 2, 3].map(|last| mesh.generation_of([10, 0, 0, last].into()));
    let here = |text: &str| text.replace("nodeName: far", "nodeName: here");
    let mut before = fixture.mesh(&here(&pods()));
    let deny = format!("{WEB}, action: DENY");
    for (policies, touched) in [
        (authorization("shop", "web", &deny), [true, false, false]),
        (authorization("shop", "web", &format!("{deny}, rules: [{{}}]")), [true, false, false]),
        (authorization("shop", "renamed", &format!("{deny}, rules: [{{}}]")), [true, false, false]),
        (peer("shop", "ns", STRICT), [true, true, false]),
        (peer("shop", "ns", STRICT) + "# a comment\n", [false; 3]),
        (peer("istio-system", "mesh", STRICT), [false, false, true]),
        (String::new(), [true; 3]),
    ] {
        let after = fixture.mesh(&here(&(pods() + &policies)));
        let (old, new) = (generations(&before), generations(&after));
        assert_eq!([0, 1, 2].map(|at| old[at] != new[at]), touched, "{policies}");
        assert_eq!(before.policies != after.policies, touched != [false; 3], "{policies}");
        before = after;
    }
}

#[test]
fn another_identity_is_another_policy_for_what_is_open() {
    let mut fixture = Fixture::new();
    let here = pods().replacen("nodeName: far", "nodeName: here", 1);
    let before = fixture.mesh(&here);
    let after = fixture.mesh(&here.replace("nodeName: here", "nodeName: here, serviceAccountName: web"));
    assert_ne!(before.policies, after.policies);
    let elsewhere = fixture.mesh(&here.replace("nodeName: far", "nodeName: far, serviceAccountName: web"));
    let again = fixture.mesh(&here);
    assert_eq!(elsewhere.policies, again.policies, "nothing that this agent governs is of another node");
}

#[test]
fn cluster_local_is_the_trust_domain_of_the_mesh() {
    let spec = "rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/x, 'cluster.local/*', '*/sa/x', other/ns/a/sa/x]}}], \
                when: [{key: source.principal, notValues: [cluster.local/ns/b/sa/y]}]}]";
    let mut fixture = Fixture::of("example.org");
    let mesh = fixture.mesh(&(pods() + &authorization("shop", "all", spec)));
    let rule = &of(&mesh, "shop", "web-0").allow[0].rules[0];
    let exact = |text: &str| Pattern::Exact(text.into());
    let expected = [
        exact("example.org/ns/a/sa/x"),
        Pattern::Prefix("example.org/".into()),
        Pattern::Suffix("/sa/x".into()),
        exact("other/ns/a/sa/x"),
    ];
    assert_eq!(rule.from[0].principals.any, expected);
    assert!(format!("{:?}", rule.when).contains("example.org/ns/b/sa/y"));
}
