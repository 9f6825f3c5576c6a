//! The engine against a naive reading of the same objects: texts are put together and compared as texts, and every rule of
//! precedence is written out once more.

use std::{net::SocketAddr, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::model::{Authorization, Condition, Operation, Pattern, Rule, ServiceAccount, Source, Values as ModelValues};

/// An object as it is written in YAML, one text per value.
#[derive(Clone, Debug)]
struct RawObject {
    action: Action,
    dry_run: bool,
    rules: Vec<RawRule>,
}

type Values = (Vec<String>, Vec<String>);

#[derive(Clone, Debug)]
struct RawRule {
    /// Principals, namespaces, service accounts, blocks.
    from: Vec<[Values; 4]>,
    /// Ports.
    to: Vec<Values>,
    /// Key and values.
    when: Vec<(&'static str, Values)>,
}

#[derive(Clone, Debug)]
struct Call {
    identity: Option<(String, String, String)>,
    address: IpAddr,
    destination: SocketAddr,
}

const ADDRESSES: [&str; 6] = ["10.0.0.1", "10.0.0.5", "192.0.2.1", "fd00::1", "fd00:1::1", "::ffff:10.0.0.1"];

const KEYS: [&str; 6] = [
    "source.principal",
    "source.namespace",
    "source.serviceAccount",
    "source.ip",
    "destination.ip",
    "destination.port",
];

fn one_of(values: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(values).prop_map(str::to_owned)
}

fn values(of: BoxedStrategy<String>) -> impl Strategy<Value = Values> {
    let few = |strategy| prop_oneof![4 => Just(Vec::new()), 6 => prop::collection::vec(strategy, 1..3)];
    (few(of.clone()), prop_oneof![3 => Just(Vec::new()), 1 => few(of)])
}

fn of_key(key: &'static str) -> BoxedStrategy<String> {
    match key {
        "source.principal" => one_of(&[
            "*",
            "td/ns/a/sa/x",
            "td/ns/a/sa/y",
            "td/ns/b/sa/x",
            "td/ns/a/*",
            "t*",
            "*/sa/x",
            "*x",
            "td/ns/a/sa/xx",
            "other/*",
        ])
        .boxed(),
        "source.namespace" => one_of(&["a", "b", "*", "a*", "*b", "ab"]).boxed(),
        "source.serviceAccount" => one_of(&["a/x", "a/y", "b/x"]).boxed(),
        "source.ip" | "destination.ip" => {
            one_of(&["10.0.0.1/32", "10.0.0.0/24", "10.0.0.0/30", "0.0.0.0/0", "fd00::/64", "fd00::1/128", "::/0"])
                .boxed()
        }
        _ => one_of(&["80", "81", "8080"]).boxed(),
    }
}

fn rules() -> impl Strategy<Value = RawRule> {
    let source = [KEYS[0], KEYS[1], KEYS[2], KEYS[3]].map(|key| values(of_key(key)).boxed());
    let condition = prop::sample::select(&KEYS[..]).prop_flat_map(|key| (Just(key), values(of_key(key))));
    (
        prop::collection::vec(source, 0..3),
        prop::collection::vec(values(of_key("destination.port")), 0..2),
        prop::collection::vec(condition, 0..2),
    )
        .prop_map(|(from, to, when)| RawRule { from, to, when })
}

fn objects() -> impl Strategy<Value = Vec<RawObject>> {
    let action = prop_oneof![3 => Just(Action::Allow), 2 => Just(Action::Deny), 1 => Just(Action::Audit)];
    let object = (action, prop::bool::weighted(0.2), prop::collection::vec(rules(), 0..3));
    prop::collection::vec(object.prop_map(|(action, dry_run, rules)| RawObject { action, dry_run, rules }), 0..5)
}

fn calls() -> impl Strategy<Value = Call> {
    let identity = (one_of(&["td", "other"]), one_of(&["a", "b", "ab"]), one_of(&["x", "y", "xx"]));
    let address = || prop::sample::select(&ADDRESSES[..]).prop_map(|text| text.parse::<IpAddr>().unwrap()).boxed();
    let port = prop::sample::select(&[80_u16, 81, 8080, 9090][..]);
    (prop::option::weighted(0.8, identity), address(), address(), port).prop_map(|(identity, address, to, port)| Call {
        identity,
        address,
        destination: (to, port).into(),
    })
}

// The naive reading.

fn naive_text(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        _ if text.is_empty() => false,
        None => pattern == text,
        Some(("", "")) => true,
        Some(("", end)) => text.ends_with(end),
        Some((begin, _)) => text.starts_with(begin),
    }
}

fn naive_value(key: &str, value: &str, call: &Call) -> bool {
    let identity = call.identity.as_ref();
    let block = |address: IpAddr| value.parse::<ipnet::IpNet>().unwrap().contains(&address.to_canonical());
    match key {
        "source.principal" => identity.is_some_and(|(domain, namespace, account)| {
            naive_text(value, &format!("{domain}/ns/{namespace}/sa/{account}"))
        }),
        "source.namespace" => identity.is_some_and(|(_, namespace, _)| naive_text(value, namespace)),
        "source.serviceAccount" => {
            identity.is_some_and(|(_, namespace, account)| value == format!("{namespace}/{account}"))
        }
        "source.ip" => block(call.address),
        "destination.ip" => block(call.destination.ip()),
        _ => value == call.destination.port().to_string(),
    }
}

fn naive_values(key: &str, (any, not): &Values, call: &Call) -> bool {
    let positive = any.is_empty() || any.iter().any(|value| naive_value(key, value, call));
    let negative = not.iter().any(|value| naive_value(key, value, call));
    positive && !negative
}

fn naive_rule(rule: &RawRule, call: &Call) -> bool {
    let source = |source: &[Values; 4]| (0..4).all(|at| naive_values(KEYS[at], &source[at], call));
    let from = rule.from.is_empty() || rule.from.iter().any(source);
    let to = rule.to.is_empty() || rule.to.iter().any(|ports| naive_values("destination.port", ports, call));
    let when = rule.when.iter().all(|(key, values)| naive_values(key, values, call));
    from && to && when
}

/// Whether it is allowed if only these objects are there; which one says so.
fn naive(objects: &[(usize, &RawObject)], call: &Call) -> (bool, Option<usize>) {
    let matching = |action| {
        let of = objects.iter().filter(move |(_, object)| object.action == action);
        of.filter(|(_, object)| object.rules.iter().any(|rule| naive_rule(rule, call))).map(|(at, _)| *at).next()
    };
    if let Some(deny) = matching(Action::Deny) {
        return (false, Some(deny));
    }
    let first_allow = objects.iter().find(|(_, object)| object.action == Action::Allow).map(|(at, _)| *at);
    match (first_allow, matching(Action::Allow)) {
        (None, _) => (true, None),
        (Some(_), Some(allow)) => (true, Some(allow)),
        (Some(first), None) => (false, Some(first)),
    }
}

// The same in the engine's terms.

fn compiled<T>((any, not): &Values, read: impl Fn(&str) -> T) -> ModelValues<T> {
    let read = |texts: &[String]| texts.iter().map(|text| read(text)).collect();
    ModelValues { any: read(any), not: read(not) }
}

fn account(text: &str) -> ServiceAccount {
    let (namespace, name) = text.split_once('/').unwrap();
    ServiceAccount { namespace: namespace.into(), name: name.into() }
}

fn rule(raw: &RawRule) -> Rule {
    let block = |text: &str| text.parse().unwrap();
    let port = |text: &str| text.parse().unwrap();
    let source = |[principals, namespaces, accounts, blocks]: &[Values; 4]| Source {
        principals: compiled(principals, Pattern::new),
        namespaces: compiled(namespaces, Pattern::new),
        service_accounts: compiled(accounts, account),
        blocks: compiled(blocks, block),
    };
    let condition = |(key, values): &(&str, Values)| match *key {
        "source.principal" => Condition::Principal(compiled(values, Pattern::new)),
        "source.namespace" => Condition::Namespace(compiled(values, Pattern::new)),
        "source.serviceAccount" => Condition::ServiceAccount(compiled(values, account)),
        "source.ip" => Condition::SourceIp(compiled(values, block)),
        "destination.ip" => Condition::DestinationIp(compiled(values, block)),
        _ => Condition::DestinationPort(compiled(values, port)),
    };
    Rule {
        from: raw.from.iter().map(source).collect(),
        to: raw.to.iter().map(|ports| Operation { ports: compiled(ports, port) }).collect(),
        when: raw.when.iter().map(condition).collect(),
    }
}

fn policy(objects: &[RawObject]) -> InboundPolicy {
    let mut policy = InboundPolicy::default();
    for (at, raw) in objects.iter().enumerate() {
        let name = ObjectName::new("a", &at.to_string());
        let rules = raw.rules.iter().map(rule).collect();
        let object = Arc::new(Authorization { name, action: raw.action, is_dry_run: raw.dry_run, rules });
        match raw.action {
            _ if raw.dry_run => policy.audit.push(object),
            Action::Allow => policy.allow.push(object),
            Action::Deny => policy.deny.push(object),
            Action::Audit => policy.audit.push(object),
        }
    }
    policy
}

fn plain(verdict: Verdict<'_>) -> (bool, Option<usize>) {
    let (is_allowed, Verdict::Allowed { by } | Verdict::Denied { by, .. }) = (verdict.is_allowed(), verdict);
    (is_allowed, by.map(|name| name.name.parse().unwrap()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_engine_says_what_the_naive_reading_says(objects in objects(), calls in prop::collection::vec(calls(), 1..8)) {
        let policy = policy(&objects);
        for call in calls {
            let identity = call.identity.clone().map(|(domain, namespace, account)| Identity {
                trust_domain: domain.into(),
                namespace: namespace.into(),
                service_account: account.into(),
            });
            let peer = Peer { identity: identity.as_ref(), address: call.address };
            let decision = authorize(&policy, &peer, call.destination);

            let all: Vec<(usize, &RawObject)> = objects.iter().enumerate().collect();
            let enforced: Vec<_> = all.iter().copied().filter(|(_, object)| !object.dry_run).collect();
            // In force come first, as they are asked.
            let dry = all.iter().copied().filter(|(_, object)| object.dry_run);
            let both: Vec<_> = enforced.iter().copied().chain(dry).collect();
            let expected = naive(&enforced, &call);
            prop_assert_eq!(plain(decision.verdict), expected);
            if let Verdict::Denied { reason, by } = decision.verdict {
                let by = by.map(|name| objects[name.name.parse::<usize>().unwrap()].action);
                prop_assert_eq!(reason == Reason::PolicyDenied, by == Some(Action::Deny));
            }
            let would = naive(&both, &call);
            let differs = (would.0 != expected.0).then_some(would);
            prop_assert_eq!(decision.dry_run.map(plain), differs);
            let audit = all.iter().find(|(_, object)| {
                object.action == Action::Audit && object.rules.iter().any(|rule| naive_rule(rule, &call))
            });
            prop_assert_eq!(decision.audited.map(|name| name.name.parse::<usize>().unwrap()), audit.map(|(at, _)| *at));
        }
    }
}
