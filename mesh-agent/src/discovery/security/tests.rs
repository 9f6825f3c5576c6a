use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    discovery::parse::{Parsed, file},
    model::Severity,
};

fn parsed(text: &str) -> Parsed {
    file(&Arc::new("a.yaml".into()), text).unwrap()
}

/// An AuthorizationPolicy with this spec, in flow style.
fn document(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: it, namespace: shop}}\nspec: {spec}\n"
    )
}

/// What is in force of the one object, and its problems.
fn read(text: &str) -> (Object, Vec<String>) {
    let parsed = parsed(text);
    let [entry] = parsed.entries.as_slice() else { panic!("{parsed:?}") };
    let object = entry.object.clone().or_else(|| entry.otherwise.clone()).expect("something is in force");
    (Object::clone(&object), parsed.problems.iter().map(ToString::to_string).collect())
}

fn policy(spec: &str) -> AuthorizationPolicy {
    let (object, problems) = read(&document(spec));
    assert_eq!(problems, [""; 0], "{spec}");
    match object {
        Object::AuthorizationPolicy(policy) => policy,
        other => panic!("{other:?}"),
    }
}

/// What is in force of an object with problems, and the one problem.
fn troubled(spec: &str) -> (Authorization, String) {
    let (object, problems) = read(&document(spec));
    let Object::AuthorizationPolicy(policy) = object else { panic!("{object:?}") };
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    (Authorization::clone(&policy.authorization), problem.clone())
}

/// As the reference of Istio shows it, with all that is looked at.
const WHOLE: &str = r#"
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata:
  name: httpbin
  namespace: foo
  annotations:
    istio.io/dry-run: "true"
spec:
  selector:
    matchLabels:
      app: httpbin
      version: v1
  action: DENY
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/default/sa/sleep", "spiffe://td/*"]
        notPrincipals: ["*/sa/b"]
    - source:
        namespaces: ["test*"]
        notNamespaces: ["*"]
        serviceAccounts: ["sleep", "bar/sleep"]
        notServiceAccounts: ["c"]
        ipBlocks: ["203.0.113.4", "10.1.0.0/16", "::ffff:10.0.0.0/104"]
        notIpBlocks: ["fd00::/8"]
    to:
    - operation:
        ports: ["80", 8080]
        notPorts: ["9"]
    when:
    - key: source.principal
      values: ["*"]
    - key: source.namespace
      notValues: [a]
    - key: source.serviceAccount
      values: [x]
    - key: source.ip
      values: [10.0.0.1]
    - key: destination.ip
      values: [10.0.0.2]
    - key: destination.port
      values: ["81"]
  - {}
"#;

#[test]
fn everything_that_is_looked_at_is_read() {
    let (object, problems) = read(WHOLE);
    assert_eq!(problems, [""; 0]);
    let account = |namespace: &str, name: &str| ServiceAccount { namespace: namespace.into(), name: name.into() };
    let one = |pattern: Pattern| Values { any: vec![pattern], not: Vec::new() };
    let exact = |text: &str| Pattern::Exact(text.into());
    let block = |text: &str| text.parse::<IpNet>().unwrap();
    let rule = Rule {
        from: vec![
            Source {
                principals: Values {
                    any: vec![exact("cluster.local/ns/default/sa/sleep"), Pattern::Prefix("td/".into())],
                    not: vec![Pattern::Suffix("/sa/b".into())],
                },
                ..Source::default()
            },
            Source {
                namespaces: Values { any: vec![Pattern::Prefix("test".into())], not: vec![Pattern::Present] },
                service_accounts: Values {
                    any: vec![account("foo", "sleep"), account("bar", "sleep")],
                    not: vec![account("foo", "c")],
                },
                blocks: Values {
                    any: vec![block("203.0.113.4/32"), block("10.1.0.0/16"), block("10.0.0.0/8")],
                    not: vec![block("fd00::/8")],
                },
                ..Source::default()
            },
        ],
        to: vec![Operation { ports: Values { any: vec![80, 8080], not: vec![9] } }],
        when: vec![
            Condition::Principal(one(Pattern::Present)),
            Condition::Namespace(Values { any: vec![], not: vec![exact("a")] }),
            Condition::ServiceAccount(Values { any: vec![account("foo", "x")], not: vec![] }),
            Condition::SourceIp(Values { any: vec![block("10.0.0.1/32")], not: vec![] }),
            Condition::DestinationIp(Values { any: vec![block("10.0.0.2/32")], not: vec![] }),
            Condition::DestinationPort(Values { any: vec![81], not: vec![] }),
        ],
    };
    let expected = AuthorizationPolicy {
        selector: Selector([("app".into(), "httpbin".into()), ("version".into(), "v1".into())].into()),
        is_attached: false,
        authorization: Arc::new(Authorization {
            name: ObjectName::new("foo", "httpbin"),
            action: Action::Deny,
            is_dry_run: true,
            rules: vec![rule, Rule::default()],
        }),
    };
    assert_eq!(object, Object::AuthorizationPolicy(expected));
}

#[test]
fn the_short_forms_mean_what_they_mean_in_istio() {
    let rules = |spec: &str| (policy(spec).authorization.action, policy(spec).authorization.rules.len());
    assert_eq!(rules("{}"), (Action::Allow, 0));
    assert_eq!(rules(""), (Action::Allow, 0));
    assert_eq!(rules("{rules: []}"), (Action::Allow, 0));
    assert_eq!(rules("{rules: [{}]}"), (Action::Allow, 1));
    assert_eq!(rules("{action: DENY}"), (Action::Deny, 0));
    assert_eq!(rules("{action: AUDIT, rules: [{}]}"), (Action::Audit, 1));
    // An empty list demands nothing, also of what is not looked at.
    let spec = "{rules: [{from: [{source: {namespaces: [a], principals: [], requestPrincipals: []}}]}]}";
    assert_eq!(policy(spec).authorization.rules[0].from[0].principals, Values::default());
    assert!(policy("{selector: {}}").selector.is_empty());
    let ours = document("{}").replace("namespace: shop", "namespace: shop, annotations: {mesh-agent.io/audit: 'true'}");
    let (Object::AuthorizationPolicy(audit), problems) = read(&ours) else { panic!() };
    assert!(audit.authorization.is_dry_run && problems.is_empty());
}

#[test]
fn what_is_not_looked_at_never_lets_more_in() {
    let http = "to: [{operation: {ports: ['80'], paths: [/admin]}}]";
    let (allow, problem) = troubled(&format!("{{rules: [{{{http}}}, {{}}]}}"));
    assert_eq!(allow.rules, [Rule::default()], "the other rule stays");
    let expected = "policy_unsupported a.yaml:4 AuthorizationPolicy shop/it spec.rules[0].to[0].operation.paths: paths is not \
                    looked at: this ALLOW rule matches nobody (See docs/POLICY.md: an ALLOW rule that uses it matches \
                    nobody, a DENY rule applies without it.)";
    assert_eq!(problem, expected);
    let (deny, problem) = troubled(&format!("{{action: DENY, rules: [{{{http}}}]}}"));
    let ports = Values { any: vec![80], not: vec![] };
    assert_eq!(deny.rules, [Rule { to: vec![Operation { ports }], ..Rule::default() }]);
    assert!(problem.contains("this DENY rule applies whatever it is"), "{problem}");

    for (rule, field) in [
        ("from: [{source: {requestPrincipals: ['*']}}]", "from[0].source.requestPrincipals"),
        ("from: [{source: {notRemoteIpBlocks: [10.0.0.1]}}]", "from[0].source.notRemoteIpBlocks"),
        ("from: [{source: {principal: x}}]", "from[0].source.principal"),
        ("to: [{operation: {methods: [GET]}}]", "to[0].operation.methods"),
        ("to: [{operation: {notHosts: [x]}}]", "to[0].operation.notHosts"),
        ("when: [{key: 'request.headers[x]', values: [a]}]", "when[0].key"),
        ("when: [{key: connection.sni, values: [a]}]", "when[0].key"),
        ("When: [{key: source.ip, values: [a]}]", "When"),
    ] {
        let (allow, problem) = troubled(&format!("{{rules: [{{{rule}}}]}}"));
        assert_eq!(allow.rules, [], "{rule}");
        assert!(problem.contains(&format!("spec.rules[0].{field}: ")), "{problem}");
        let (deny, _) = troubled(&format!("{{action: DENY, rules: [{{{rule}}}]}}"));
        let [rule] = deny.rules.as_slice() else { panic!("{deny:?}") };
        let demands_nothing = |rule: &Rule| {
            rule.from.iter().all(|source| *source == Source::default())
                && rule.to.iter().all(|operation| *operation == Operation::default())
                && rule.when.is_empty()
        };
        assert!(demands_nothing(rule), "{rule:?}");
    }
}

#[test]
fn whole_objects_that_are_not_for_us_are_reported() {
    let (custom, problem) = troubled("{action: CUSTOM, provider: {name: opa}, rules: [{}]}");
    assert_eq!((custom.action, custom.rules.len()), (Action::Deny, 1));
    assert!(problem.contains("spec.action: CUSTOM asks an external authorizer"), "{problem}");
    for refs in ["targetRefs: [{kind: Gateway, name: w}]", "targetRef: {kind: Service, name: w}"] {
        let (object, problems) = read(&document(&format!("{{{refs}, rules: [{{}}]}}")));
        assert!(matches!(object, Object::AuthorizationPolicy(AuthorizationPolicy { is_attached: true, .. })));
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("policy_unsupported"), "{problems:?}");
    }
    let request = document("{}").replace("AuthorizationPolicy", "RequestAuthentication");
    let ignored = parsed(&request);
    assert_eq!((ignored.entries.len(), ignored.ignored), (0, 1));
    assert!(ignored.problems[0].message.contains("RequestAuthentication of security.istio.io/v1 is not read"));
}

#[test]
fn errors_name_the_field_and_the_object_lets_nobody_in_until_it_is_mended() {
    for (spec, message) in [
        ("{action: PERMIT}", "spec.action: \"PERMIT\" is unknown (Write ALLOW, DENY or AUDIT.)"),
        (
            "{rule: []}",
            "spec.rule: is unknown (Remove it, or use one of selector, targetRef, targetRefs, action, provider, rules.)",
        ),
        ("{selector: {matchExpressions: []}}", "spec.selector.matchExpressions: is unknown"),
        ("{rules: {}}", "spec.rules: a mapping is not a list"),
        ("{rules: [x]}", "spec.rules[0]: \"x\" is not a mapping"),
        ("{rules: [{from: []}]}", "spec.rules[0].from: is an empty list"),
        ("{rules: [{from: [{}]}]}", "spec.rules[0].from[0].source: demands nothing"),
        ("{rules: [{from: [{source: {principals: []}}]}]}", "spec.rules[0].from[0].source: demands nothing"),
        ("{rules: [{from: [{source: {principals: [a*b]}}]}]}", "principals[0]: \"a*b\" has a * in the wrong place"),
        ("{rules: [{from: [{source: {namespaces: ['*a*']}}]}]}", "namespaces[0]: \"*a*\" has a * in the wrong place"),
        ("{rules: [{from: [{source: {namespaces: ['']}}]}]}", "namespaces[0]: \"\" is empty"),
        ("{rules: [{from: [{source: {serviceAccounts: ['a/*']}}]}]}", "\"a/*\" is not a service account"),
        ("{rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}", "\"10.0.0.0/33\" is not a CIDR"),
        ("{rules: [{to: [{operation: {ports: ['0']}}]}]}", "\"0\" is not a port"),
        ("{rules: [{to: [{operation: {ports: [http]}}]}]}", "\"http\" is not a port"),
        ("{rules: [{when: [{key: source.ip}]}]}", "spec.rules[0].when[0]: has neither values nor notValues"),
        ("{rules: [{when: [{values: [a]}]}]}", "spec.rules[0].when[0].key: is missing"),
    ] {
        let (authorization, problem) = troubled(spec);
        assert!(problem.starts_with("bad_field a.yaml:4 ") && problem.contains(message), "{problem}");
        // Nobody gets in: by an ALLOW that allows nobody, or by a DENY.
        let is_allow = authorization.action == Action::Allow && authorization.rules.is_empty();
        let is_deny = authorization.action == Action::Deny && authorization.rules == [Rule::default()];
        assert!(is_allow || is_deny, "{authorization:?}");
    }
    let bad = "{action: DENY, selector: {matchLabels: {app: web}}, rules: 1}";
    let (Object::AuthorizationPolicy(deny), _) = read(&document(bad)) else { panic!() };
    assert_eq!((deny.authorization.action, deny.selector.0.len()), (Action::Deny, 1));
    // What would not refuse anybody is nothing until it is mended.
    let audit = parsed(&document("{action: AUDIT, rules: 1}"));
    assert!(audit.entries[0].object.is_none() && audit.entries[0].otherwise.is_none());
    assert_eq!(audit.problems[0].severity, Severity::Error);
}

fn peer(spec: &str) -> (PeerAuthentication, Vec<String>) {
    let (object, problems) = read(&document(spec).replace("AuthorizationPolicy", "PeerAuthentication"));
    match object {
        Object::PeerAuthentication(policy) => (policy, problems),
        other => panic!("{other:?}"),
    }
}

#[test]
fn modes_are_read_by_workload_and_port() {
    let plain = |mode| PeerAuthentication { selector: Selector::default(), mode, ports: Vec::new() };
    for (spec, mode) in [
        ("", None),
        ("{}", None),
        ("{mtls: {}}", None),
        ("{mtls: {mode: UNSET}}", None),
        ("{mtls: {mode: STRICT}}", Some(Mode::Strict)),
        ("{mtls: {mode: PERMISSIVE}}", Some(Mode::Permissive)),
        ("{mtls: {mode: DISABLE}}", Some(Mode::Disabled)),
    ] {
        assert_eq!(peer(spec), (plain(mode), Vec::new()), "{spec}");
    }
    let spec = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, \
                portLevelMtls: {'8080': {mode: PERMISSIVE}, 80: {mode: UNSET}}}";
    let (policy, problems) = peer(spec);
    assert_eq!(problems, [""; 0]);
    assert_eq!(policy.ports, [(80, None), (8080, Some(Mode::Permissive))]);
    for (spec, message) in [
        ("{mtls: {mode: strict}}", "spec.mtls.mode: \"strict\" is unknown"),
        ("{mtls: STRICT}", "spec.mtls: \"STRICT\" is not a mapping"),
        ("{mtl: {mode: STRICT}}", "spec.mtl: is unknown"),
        ("{portLevelMtls: {80: {mode: STRICT}}}", "spec.portLevelMtls: is only for selected workloads"),
        (
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: STRICT}}}",
            "portLevelMtls.http: a mapping is not of a port",
        ),
    ] {
        let (policy, problems) = peer(spec);
        assert!(problems.len() == 1 && problems[0].contains(message), "{problems:?}");
        assert_eq!(policy.mode, Some(Mode::Strict), "closed until it is mended");
    }
}

// Mutations of a policy: whatever is in the file, reading it ends, says what is wrong, and lets nobody in by accident.

/// One edit of a text, by fractions of its length.
#[derive(Clone, Debug)]
enum Edit {
    Cut(f64, f64),
    Repeat(f64, f64),
    Insert(f64, &'static str),
    Swap(f64, f64, f64),
}

fn edits() -> impl Strategy<Value = Edit> {
    let at = || 0.0..1.0_f64;
    let pieces = [
        "*",
        "'",
        "\"",
        "[",
        "]",
        "{",
        "}",
        ":",
        ",",
        "- ",
        "\n",
        "\n  ",
        "\t",
        "!!str ",
        "&a ",
        "*a",
        "null",
        "~",
        "0",
        "99999999999",
        "-1",
        "10.0.0.0/99",
        "::",
        "\u{0}",
        "\u{feff}",
        "é",
        "---\n",
        "paths: [x]",
        "action: DENY",
        "rules: []",
    ];
    prop_oneof![
        (at(), at()).prop_map(|(a, b)| Edit::Cut(a, b * 0.1)),
        (at(), at()).prop_map(|(a, b)| Edit::Repeat(a, b * 0.1)),
        (at(), prop::sample::select(pieces.to_vec())).prop_map(|(a, piece)| Edit::Insert(a, piece)),
        (at(), at(), at()).prop_map(|(a, b, c)| Edit::Swap(a, b, c * 0.05)),
    ]
}

fn edited(text: &str, edit: &Edit) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |fraction: f64| (chars.len() as f64 * fraction) as usize;
    let collect = |parts: &[&[char]]| parts.iter().flat_map(|part| part.iter()).collect::<String>();
    match edit {
        Edit::Cut(from, share) => {
            let (from, to) = (at(*from), (at(*from) + at(*share)).min(chars.len()));
            collect(&[&chars[..from], &chars[to..]])
        }
        Edit::Repeat(from, share) => {
            let (from, to) = (at(*from), (at(*from) + at(*share)).min(chars.len()));
            collect(&[&chars[..to], &chars[from..]])
        }
        Edit::Insert(place, piece) => {
            let piece: Vec<char> = piece.chars().collect();
            collect(&[&chars[..at(*place)], &piece, &chars[at(*place)..]])
        }
        Edit::Swap(a, b, share) => {
            let (a, b) = (at(a.min(*b)), at(a.max(*b)));
            let length = at(*share).min(b - a).min(chars.len() - b);
            collect(&[
                &chars[..a],
                &chars[b..b + length],
                &chars[a + length..b],
                &chars[a..a + length],
                &chars[b + length..],
            ])
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn mutated_policies_end_in_an_object_or_in_a_problem(edits in prop::collection::vec(edits(), 1..6)) {
        let text = edits.iter().fold(WHOLE.to_owned(), |text, edit| edited(&text, edit));
        let Ok(parsed) = file(&Arc::new("a.yaml".into()), &text) else { return Ok(()) };
        for entry in &parsed.entries {
            match (&entry.object, &entry.otherwise) {
                (Some(_), None) => {}
                (None, instead) => {
                    let named = |problem: &crate::model::Problem| problem.object == entry.key.to_string();
                    prop_assert!(parsed.problems.iter().any(named), "{text}");
                    if let Some(Object::AuthorizationPolicy(instead)) = instead.as_deref() {
                        let authorization = &instead.authorization;
                        let lets_somebody_in = authorization.action == Action::Allow && !authorization.rules.is_empty();
                        prop_assert!(!lets_somebody_in && !authorization.is_dry_run);
                    }
                }
                (Some(_), Some(_)) => prop_assert!(false, "one of them"),
            }
        }
        // Reading it again says the same.
        let again = file(&Arc::new("a.yaml".into()), &text).unwrap();
        prop_assert_eq!(parsed.problems, again.problems);
    }
}
