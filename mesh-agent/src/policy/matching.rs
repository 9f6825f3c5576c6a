//! Does an AuthorizationPolicy match a connection?

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::Peer;
use crate::model::{Authorization, Condition, Identity, Pattern, Rule, ServiceAccount, Source, Values};

/// Whether one of its rules matches. Addresses are canonical.
pub(super) fn matches(authorization: &Authorization, peer: &Peer<'_>, destination: SocketAddr) -> bool {
    authorization.rules.iter().any(|rule| rule_matches(rule, peer, destination))
}

fn rule_matches(rule: &Rule, peer: &Peer<'_>, destination: SocketAddr) -> bool {
    let port = destination.port();
    (rule.from.is_empty() || rule.from.iter().any(|source| source_matches(source, peer)))
        && (rule.to.is_empty() || rule.to.iter().any(|operation| hold(&operation.ports, |own| *own == port)))
        && rule.when.iter().all(|condition| condition_holds(condition, peer, destination))
}

fn source_matches(source: &Source, peer: &Peer<'_>) -> bool {
    let Source { principals, namespaces, service_accounts, blocks } = source;
    hold(principals, |pattern| is_principal(pattern, peer.identity))
        && hold(namespaces, |pattern| is_in_namespace(pattern, peer.identity))
        && hold(service_accounts, |account| is_account(account, peer.identity))
        && hold(blocks, |block| contains(block, peer.address))
}

fn condition_holds(condition: &Condition, peer: &Peer<'_>, destination: SocketAddr) -> bool {
    match condition {
        Condition::Principal(values) => hold(values, |pattern| is_principal(pattern, peer.identity)),
        Condition::Namespace(values) => hold(values, |pattern| is_in_namespace(pattern, peer.identity)),
        Condition::ServiceAccount(values) => hold(values, |account| is_account(account, peer.identity)),
        Condition::SourceIp(values) => hold(values, |block| contains(block, peer.address)),
        Condition::DestinationIp(values) => hold(values, |block| contains(block, destination.ip())),
        Condition::DestinationPort(values) => hold(values, |port| *port == destination.port()),
    }
}

fn hold<T>(values: &Values<T>, matches: impl Fn(&T) -> bool) -> bool {
    (values.any.is_empty() || values.any.iter().any(&matches)) && !values.not.iter().any(&matches)
}

fn is_principal(pattern: &Pattern, identity: Option<&Identity>) -> bool {
    identity.is_some_and(|Identity { trust_domain, namespace, service_account }| {
        is_like(pattern, [trust_domain, "/ns/", namespace, "/sa/", service_account])
    })
}

fn is_in_namespace(pattern: &Pattern, identity: Option<&Identity>) -> bool {
    identity.is_some_and(|identity| is_like(pattern, [&*identity.namespace]))
}

fn is_account(account: &ServiceAccount, identity: Option<&Identity>) -> bool {
    identity.is_some_and(|identity| account.name == identity.service_account && account.namespace == identity.namespace)
}

fn contains(block: &IpNet, address: IpAddr) -> bool {
    block.contains(&address)
}

/// Compares with a text in parts, which need not be joined for it.
fn is_like<const N: usize>(pattern: &Pattern, parts: [&str; N]) -> bool {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let bytes = || parts.iter().flat_map(|part| part.bytes());
    match pattern {
        Pattern::Present => length > 0,
        Pattern::Exact(text) => text.len() == length && text.bytes().eq(bytes()),
        Pattern::Prefix(text) => text.len() <= length && text.bytes().eq(bytes().take(text.len())),
        Pattern::Suffix(text) => text.len() <= length && text.bytes().eq(bytes().skip(length - text.len())),
    }
}
