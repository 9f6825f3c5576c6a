//! What is allowed to reach a workload, as data: what the objects say, joined per workload. [`crate::policy`] decides.
//!
//! The semantics are those of Istio's PeerAuthentication and AuthorizationPolicy
//! (<https://istio.io/latest/docs/reference/config/security/>), as far as they do not look into HTTP.

use std::sync::Arc;

use ipnet::IpNet;

use super::{Mode, ObjectName};

/// What is allowed to reach a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct InboundPolicy {
    /// What becomes of plaintext, where no port says otherwise.
    pub mode: Mode,
    /// What becomes of plaintext to single ports, sorted.
    pub ports: Vec<(u16, Mode)>,
    /// In force, [`Action::Deny`]: whom one of these matches is refused.
    pub deny: Vec<Arc<Authorization>>,
    /// In force, [`Action::Allow`]: where there are any, whom none of these matches is refused.
    pub allow: Vec<Arc<Authorization>>,
    /// Evaluated for the record only: [`Action::Audit`] and dry runs.
    pub audit: Vec<Arc<Authorization>>,
}

impl InboundPolicy {
    /// What becomes of plaintext to `port`.
    pub fn mode_of(&self, port: u16) -> Mode {
        self.ports.iter().find(|(own, _)| *own == port).map_or(self.mode, |(_, mode)| *mode)
    }

    /// Whether anybody may be refused by an object in force.
    pub fn has_authorizations(&self) -> bool {
        !self.deny.is_empty() || !self.allow.is_empty()
    }

    /// What the kernel is to do while no agent answers: it closes a workload of which any port is closed to anybody.
    pub fn kernel_mode(&self) -> Mode {
        let is_strict = self.ports.iter().any(|(_, mode)| *mode == Mode::Strict);
        if is_strict || self.has_authorizations() { Mode::Strict } else { self.mode }
    }
}

/// What an AuthorizationPolicy does to whom it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// `ALLOW`.
    Allow,
    /// `DENY`.
    Deny,
    /// `AUDIT`: it is noted.
    Audit,
}

/// An AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authorization {
    /// The object's name.
    pub name: ObjectName,
    /// What it does.
    pub action: Action,
    /// It is evaluated and not enforced.
    pub is_dry_run: bool,
    /// It matches whom one of these matches; without any, nobody.
    pub rules: Vec<Rule>,
}

/// One of `rules`: all three parts have to hold; an empty one does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// `from`: one of these has to hold.
    pub from: Vec<Source>,
    /// `to`: one of these has to hold.
    pub to: Vec<Operation>,
    /// `when`: all of these have to hold.
    pub when: Vec<Condition>,
}

/// Positive and negative values of one attribute: one of `any` has to match unless there are none, and none of `not`.
/// An attribute that is unknown, such as the identity of a stranger, matches no value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Values<T> {
    /// `values`, or the attribute's plain name.
    pub any: Vec<T>,
    /// `notValues`, or the attribute's name with `not`.
    pub not: Vec<T>,
}

impl<T> Default for Values<T> {
    fn default() -> Self {
        Self { any: Vec::new(), not: Vec::new() }
    }
}

impl<T> Values<T> {
    /// Whether nothing is demanded.
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.not.is_empty()
    }
}

/// A text to compare with: `*`, `text`, `text*` or `*text`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Anything that is there.
    Present,
    /// Exactly this.
    Exact(Arc<str>),
    /// What begins with this.
    Prefix(Arc<str>),
    /// What ends with this.
    Suffix(Arc<str>),
}

impl Pattern {
    /// From its text.
    pub fn new(text: &str) -> Self {
        if text == "*" {
            Self::Present
        } else if let Some(prefix) = text.strip_suffix('*') {
            Self::Prefix(prefix.into())
        } else if let Some(suffix) = text.strip_prefix('*') {
            Self::Suffix(suffix.into())
        } else {
            Self::Exact(text.into())
        }
    }
}

/// A service account, of whatever trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// `from[].source`: all attributes have to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Source {
    /// `principals`: the identity without `spiffe://`.
    pub principals: Values<Pattern>,
    /// `namespaces`: of the identity.
    pub namespaces: Values<Pattern>,
    /// `serviceAccounts`.
    pub service_accounts: Values<ServiceAccount>,
    /// `ipBlocks`: of the connection's source.
    pub blocks: Values<IpNet>,
}

/// `to[].operation`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Operation {
    /// `ports`: of the workload.
    pub ports: Values<u16>,
}

/// One of `when`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// `source.principal`.
    Principal(Values<Pattern>),
    /// `source.namespace`.
    Namespace(Values<Pattern>),
    /// `source.serviceAccount`.
    ServiceAccount(Values<ServiceAccount>),
    /// `source.ip`.
    SourceIp(Values<IpNet>),
    /// `destination.ip`.
    DestinationIp(Values<IpNet>),
    /// `destination.port`.
    DestinationPort(Values<u16>),
}
