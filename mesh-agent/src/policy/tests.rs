use std::{net::SocketAddr, sync::Arc};

use super::*;
use crate::model::{Authorization, Condition, Operation, Pattern, Rule, ServiceAccount, Source, Values};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn any<T>(values: impl IntoIterator<Item = T>) -> Values<T> {
    Values { any: values.into_iter().collect(), not: Vec::new() }
}

fn not<T>(values: impl IntoIterator<Item = T>) -> Values<T> {
    Values { any: Vec::new(), not: values.into_iter().collect() }
}

fn from(source: Source) -> Rule {
    Rule { from: vec![source], ..Rule::default() }
}

fn principals(values: Values<Pattern>) -> Rule {
    from(Source { principals: values, ..Source::default() })
}

fn object(action: Action, name: &str, rules: Vec<Rule>) -> Arc<Authorization> {
    Arc::new(Authorization { name: ObjectName::new("shop", name), action, is_dry_run: false, rules })
}

fn policy(objects: &[Arc<Authorization>]) -> InboundPolicy {
    let mut policy = InboundPolicy::default();
    for object in objects {
        match object.action {
            _ if object.is_dry_run => policy.audit.push(Arc::clone(object)),
            Action::Allow => policy.allow.push(Arc::clone(object)),
            Action::Deny => policy.deny.push(Arc::clone(object)),
            Action::Audit => policy.audit.push(Arc::clone(object)),
        }
    }
    policy
}

fn ask<'a>(policy: &'a InboundPolicy, identity: Option<&str>, address: &str) -> Decision<'a> {
    let identity = identity.map(|identity| identity.parse().unwrap());
    let peer = Peer { identity: identity.as_ref(), address: address.parse().unwrap() };
    authorize(policy, &peer, "10.0.0.9:8080".parse().unwrap())
}

/// Whether a rule matches somebody at 10.0.0.1 who calls 10.0.0.9:8080.
fn matches(rule: Rule, identity: Option<&str>) -> bool {
    let policy = policy(&[object(Action::Allow, "it", vec![rule])]);
    ask(&policy, identity, "10.0.0.1").verdict.is_allowed()
}

fn verdict(decision: Decision<'_>) -> String {
    match decision.verdict {
        Verdict::Allowed { by } => format!("allowed {}", by.map_or("-", |by| &by.name)),
        Verdict::Denied { reason, by } => format!("{reason} {}", by.map_or("-", |by| &by.name)),
    }
}

#[test]
fn plaintext_from_strangers_is_a_matter_of_mode_and_port() {
    let mut policy = InboundPolicy::default();
    assert_eq!(admit_plaintext(&policy, 80), Ok(()));
    policy.mode = Mode::Strict;
    policy.ports = vec![(80, Mode::Permissive), (81, Mode::Disabled)];
    assert_eq!(admit_plaintext(&policy, 80), Ok(()));
    assert_eq!(admit_plaintext(&policy, 81), Ok(()));
    assert_eq!(admit_plaintext(&policy, 82), Err(Reason::PlaintextRefused));
}

#[test]
fn deny_comes_before_allow_and_whom_nobody_allows_is_refused() {
    let everybody = || vec![Rule::default()];
    let nobody = Vec::new;
    let cart = || vec![principals(any([Pattern::new("cluster.local/ns/shop/sa/cart")]))];
    let allow = |rules| object(Action::Allow, "allow", rules);
    let deny = |rules| object(Action::Deny, "deny", rules);
    for (objects, identity, expected) in [
        (vec![], None, "allowed -"),
        (vec![allow(everybody())], None, "allowed allow"),
        (vec![allow(nobody())], Some(CART), "policy_no_match allow"),
        (vec![allow(cart())], Some(CART), "allowed allow"),
        (vec![allow(cart())], None, "policy_no_match allow"),
        (vec![deny(nobody())], None, "allowed -"),
        (vec![deny(cart())], None, "allowed -"),
        (vec![deny(cart())], Some(CART), "policy_denied deny"),
        (vec![deny(cart()), allow(everybody())], Some(CART), "policy_denied deny"),
        (vec![deny(everybody()), allow(cart())], Some(CART), "policy_denied deny"),
        (vec![allow(nobody()), object(Action::Allow, "second", cart())], Some(CART), "allowed second"),
    ] {
        let policy = policy(&objects);
        assert_eq!(verdict(ask(&policy, identity, "10.0.0.1")), expected, "{objects:?}");
    }
}

#[test]
fn principals_are_compared_as_a_whole_by_their_begin_or_by_their_end() {
    for (pattern, matches_cart) in [
        ("*", true),
        ("cluster.local/ns/shop/sa/cart", true),
        ("cluster.local/ns/shop/sa/car", false),
        ("cluster.local/ns/shop/sa/cart2", false),
        ("cluster.local/ns/shop/sa/*", true),
        ("cluster.local/ns/sho*", true),
        ("cluster.local/ns/shop/sa/cart*", true),
        ("cluster.local/ns/shop/sa/cart/x*", false),
        ("other/*", false),
        ("*/sa/cart", true),
        ("*cluster.local/ns/shop/sa/cart", true),
        ("*xcluster.local/ns/shop/sa/cart", false),
        ("*/ns/shop/sa/cart2", false),
    ] {
        let pattern = Pattern::new(pattern);
        assert_eq!(matches(principals(any([pattern.clone()])), Some(CART)), matches_cart, "{pattern:?}");
        assert_eq!(matches(principals(not([pattern.clone()])), Some(CART)), !matches_cart, "not {pattern:?}");
        // Who is nobody matches nothing.
        assert!(!matches(principals(any([pattern.clone()])), None));
        assert!(matches(principals(not([pattern])), None));
    }
}

#[test]
fn every_attribute_is_looked_at() {
    let account = |namespace: &str, name: &str| ServiceAccount { namespace: namespace.into(), name: name.into() };
    let block = |text: &str| text.parse().unwrap();
    let source = Source::default;
    let when = |condition| Rule { when: vec![condition], ..Rule::default() };
    let to = |ports| Rule { to: vec![Operation { ports }], ..Rule::default() };
    for (rule, expected) in [
        (from(Source { namespaces: any([Pattern::new("shop")]), ..source() }), true),
        (from(Source { namespaces: any([Pattern::new("sho")]), ..source() }), false),
        (from(Source { namespaces: any([Pattern::new("s*")]), ..source() }), true),
        (from(Source { namespaces: not([Pattern::new("shop")]), ..source() }), false),
        (from(Source { service_accounts: any([account("shop", "cart")]), ..source() }), true),
        (from(Source { service_accounts: any([account("other", "cart")]), ..source() }), false),
        (from(Source { service_accounts: not([account("shop", "cart")]), ..source() }), false),
        (from(Source { blocks: any([block("10.0.0.0/30")]), ..source() }), true),
        (from(Source { blocks: any([block("10.0.0.4/30"), block("::/0")]), ..source() }), false),
        (from(Source { blocks: not([block("10.0.0.1/32")]), ..source() }), false),
        (to(any([80, 8080])), true),
        (to(any([80])), false),
        (to(not([8080])), false),
        (when(Condition::Principal(any([Pattern::new("*/cart")]))), true),
        (when(Condition::Principal(not([Pattern::Present]))), false),
        (when(Condition::Namespace(any([Pattern::new("*p")]))), true),
        (when(Condition::ServiceAccount(not([account("shop", "cart")]))), false),
        (when(Condition::SourceIp(any([block("10.0.0.1/32")]))), true),
        (when(Condition::SourceIp(not([block("10.0.0.0/8")]))), false),
        (when(Condition::DestinationIp(any([block("10.0.0.9/32")]))), true),
        (when(Condition::DestinationIp(any([block("10.0.0.1/32")]))), false),
        (when(Condition::DestinationPort(any([8080]))), true),
        (when(Condition::DestinationPort(not([8080]))), false),
    ] {
        assert_eq!(matches(rule.clone(), Some(CART)), expected, "{rule:?}");
    }
}

#[test]
fn mapped_addresses_are_ipv4_addresses() {
    let rule = from(Source { blocks: any(["10.0.0.0/8".parse().unwrap()]), ..Source::default() });
    let policy = policy(&[object(Action::Allow, "allow", vec![rule])]);
    assert!(ask(&policy, None, "::ffff:10.0.0.1").verdict.is_allowed());
    let destination: SocketAddr = "[::ffff:10.0.0.9]:8080".parse().unwrap();
    let peer = Peer { identity: None, address: "10.0.0.1".parse().unwrap() };
    assert!(authorize(&policy, &peer, destination).verdict.is_allowed());
}

#[test]
fn parts_of_a_rule_all_have_to_hold() {
    let cart = Source { principals: any([Pattern::new("*/cart")]), ..Source::default() };
    let other = Source { principals: any([Pattern::new("*/other")]), ..Source::default() };
    let port = |port| Operation { ports: any([port]) };
    let rule = |from: &[&Source], to: &[u16]| Rule {
        from: from.iter().copied().cloned().collect(),
        to: to.iter().map(|number| port(*number)).collect(),
        when: Vec::new(),
    };
    assert!(matches(rule(&[&other, &cart], &[80, 8080]), Some(CART)));
    assert!(!matches(rule(&[&other], &[8080]), Some(CART)));
    assert!(!matches(rule(&[&cart], &[80]), Some(CART)));
}

#[test]
fn dry_runs_and_audits_are_noted_and_change_nothing() {
    let dry = |action, rules| {
        let object = Authorization { is_dry_run: true, ..Authorization::clone(&object(action, "dry", rules)) };
        Arc::new(object)
    };
    let note = |objects: &[Arc<Authorization>]| {
        let policy = policy(objects);
        let decision = ask(&policy, Some(CART), "10.0.0.1");
        let would = decision.dry_run.map(|verdict| self::verdict(Decision { verdict, ..decision }));
        (verdict(decision), would.unwrap_or_default(), decision.audited.map_or("", |name| &name.name).to_owned())
    };
    let expected = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    let everybody = || vec![Rule::default()];
    let nothing = object(Action::Allow, "nothing", vec![]);
    assert_eq!(note(&[dry(Action::Deny, everybody())]), expected("allowed -", "policy_denied dry", ""));
    assert_eq!(note(&[dry(Action::Deny, vec![])]), expected("allowed -", "", ""));
    assert_eq!(note(&[dry(Action::Allow, vec![])]), expected("allowed -", "policy_no_match dry", ""));
    assert_eq!(note(&[dry(Action::Allow, everybody())]), expected("allowed -", "", ""));
    assert_eq!(
        note(&[Arc::clone(&nothing), dry(Action::Allow, everybody())]),
        expected("policy_no_match nothing", "allowed dry", "")
    );
    assert_eq!(
        note(&[nothing, object(Action::Audit, "audit", everybody())]),
        expected("policy_no_match nothing", "", "audit")
    );
    assert_eq!(note(&[dry(Action::Audit, everybody())]), expected("allowed -", "", "dry"));
}
