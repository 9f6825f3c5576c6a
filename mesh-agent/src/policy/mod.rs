//! May this peer do this? Pure, and nothing is allocated to answer.

mod flow;
mod matching;
#[cfg(test)]
mod soundness;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

pub use flow::{Client, Flow, is_governed, is_unremarkable, may_differ, review, worth_noting};

use crate::model::{Action, Authorization, Identity, InboundPolicy, Mode, ObjectName, Reason};

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Who it is, if the kernel or a certificate vouches for it.
    pub identity: Option<&'a Identity>,
    /// Where it calls from.
    pub address: IpAddr,
}

/// Yes or no, and by which object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It may.
    Allowed {
        /// The object that allows it; `None` where none restricts anybody.
        by: Option<&'a ObjectName>,
    },
    /// It may not.
    Denied {
        /// [`Reason::PolicyDenied`]: an object denies it. [`Reason::PolicyNoMatch`]: no object allows it.
        reason: Reason,
        /// The object that denies it, or the first of those that do not allow it.
        by: Option<&'a ObjectName>,
    },
}

impl Verdict<'_> {
    /// Whether it is a yes.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}

/// A verdict, and what is to be noted beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// What is enforced.
    pub verdict: Verdict<'a>,
    /// What the verdict would be if the dry runs were in force, where it would be another.
    pub dry_run: Option<Verdict<'a>>,
    /// The first `AUDIT` object that matches.
    pub audited: Option<&'a ObjectName>,
}

impl Decision<'_> {
    /// Nothing restricts anybody.
    pub const ALLOWED: Self = Self { verdict: Verdict::Allowed { by: None }, dry_run: None, audited: None };
}

/// Whether `peer` may reach the workload that `policy` is of, at `destination`, an address of its own. What it may do in
/// plaintext is asked of [`admit_plaintext`] before.
pub fn authorize<'a>(policy: &'a InboundPolicy, peer: &Peer<'_>, destination: SocketAddr) -> Decision<'a> {
    let peer = Peer { identity: peer.identity, address: peer.address.to_canonical() };
    let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    let matches = |authorization: &&&Authorization| matching::matches(authorization, &peer, destination);

    let denied = policy.deny.iter().map(|object| &**object).find(|object| matches(&object));
    let allowed = policy.allow.iter().map(|object| &**object).find(|object| matches(&object));
    let verdict = verdict(denied, allowed, policy.allow.first().map(|object| &**object));
    if policy.audit.is_empty() {
        return Decision { verdict, dry_run: None, audited: None };
    }

    let of = |action| policy.audit.iter().map(|object| &**object).filter(move |object| object.action == action);
    let first = |action| of(action).find(|object| matches(&object));
    let would = self::verdict(
        denied.or_else(|| first(Action::Deny)),
        allowed.or_else(|| first(Action::Allow)),
        policy.allow.first().map(|object| &**object).or_else(|| of(Action::Allow).next()),
    );
    let dry_run = (would.is_allowed() != verdict.is_allowed()).then_some(would);
    Decision { verdict, dry_run, audited: first(Action::Audit).map(|object| &object.name) }
}

/// DENY comes before ALLOW, and where anybody is allowed by name, nobody else is.
fn verdict<'a>(
    denied: Option<&'a Authorization>,
    allowed: Option<&'a Authorization>,
    first_allow: Option<&'a Authorization>,
) -> Verdict<'a> {
    match (denied, allowed, first_allow) {
        (Some(object), ..) => Verdict::Denied { reason: Reason::PolicyDenied, by: Some(&object.name) },
        (None, Some(object), _) => Verdict::Allowed { by: Some(&object.name) },
        (None, None, Some(object)) => Verdict::Denied { reason: Reason::PolicyNoMatch, by: Some(&object.name) },
        (None, None, None) => Verdict::Allowed { by: None },
    }
}

/// Whether plaintext from somebody the kernel does not vouch for may reach `port` of the workload.
///
/// # Errors
/// [`Reason::PlaintextRefused`].
pub fn admit_plaintext(policy: &InboundPolicy, port: u16) -> Result<(), Reason> {
    match policy.mode_of(port) {
        Mode::Permissive | Mode::Disabled => Ok(()),
        Mode::Strict => Err(Reason::PlaintextRefused),
    }
}
