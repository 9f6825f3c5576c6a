//! The kinds of `security.istio.io`, version 1 (and v1beta1, which has the same fields): PeerAuthentication and
//! AuthorizationPolicy.
//!
//! What a rule demands and we do not look at never makes it let more in: an ALLOW rule with such a demand matches nobody,
//! a DENY rule applies without it, and either is a problem of the object ([`Reason::PolicyUnsupported`]).

use std::sync::Arc;

use ipnet::IpNet;

use super::{
    annotations::cidr,
    field::{Field, FieldError, Result},
    object::{AuthorizationPolicy, Labels, Object, PeerAuthentication, Selector},
    parse::is_name,
};
use crate::model::{
    Action, Authorization, Condition, Mode, ObjectName, Operation, Pattern, Reason, Rule, ServiceAccount, Source,
    Values,
};

#[cfg(test)]
mod tests;

/// Set on an AuthorizationPolicy that is to be evaluated and not enforced, as in Istio.
const DRY_RUN: &str = "istio.io/dry-run";

/// Reads a PeerAuthentication.
pub(super) fn peer_authentication(root: &Field<'_>) -> Result<PeerAuthentication> {
    let spec = root.mapping("spec")?;
    only(&spec, &["selector", "mtls", "portLevelMtls"])?;
    let selector = selector(&spec)?;
    let field = spec.get("portLevelMtls");
    let mut ports = Vec::new();
    for (port, field) in field.entries()? {
        let Some(port) = port.parse().ok().filter(|port| *port > 0) else {
            return Err(field.bad("is not of a port, 1 to 65535", "Write the port of the workload as the key."));
        };
        ports.push((port, mtls(&field)?));
    }
    if !ports.is_empty() && selector.is_empty() {
        let remedy = "Add a selector, or set the mode for all ports.";
        return Err(field.error(Reason::BadField, "is only for selected workloads".into(), remedy));
    }
    ports.sort_unstable_by_key(|(port, _)| *port);
    let mtls_field = spec.get("mtls");
    Ok(PeerAuthentication { selector, mode: mtls(&mtls_field)?, ports })
}

/// `UNSET` and nothing are the same: the mode is inherited.
fn mtls(field: &Field<'_>) -> Result<Option<Mode>> {
    only(field, &["mode"])?;
    let mode = field.get("mode");
    match mode.text()? {
        None | Some("UNSET") => Ok(None),
        Some("STRICT") => Ok(Some(Mode::Strict)),
        Some("PERMISSIVE") => Ok(Some(Mode::Permissive)),
        Some("DISABLE" | "DISABLED") => Ok(Some(Mode::Disabled)),
        Some(_) => Err(mode.bad("is unknown", "Write STRICT, PERMISSIVE, DISABLE or UNSET.")),
    }
}

/// Reads an AuthorizationPolicy; `is_audit` is what the annotation of ours says.
pub(super) fn authorization_policy(
    root: &Field<'_>,
    name: &ObjectName,
    is_audit: bool,
    notes: &mut Vec<FieldError>,
) -> Result<AuthorizationPolicy> {
    let spec = root.mapping("spec")?;
    only(&spec, &["selector", "targetRef", "targetRefs", "action", "provider", "rules"])?;
    let is_dry_run = is_dry_run(root)? || is_audit;
    let action = action(&spec, notes)?;
    let is_attached = is_attached(&spec, notes)?;
    let fields = spec.get("rules");
    let mut rules = Vec::new();
    for item in fields.items()? {
        let mut reader = Reader { action, namespace: &name.namespace, notes, is_complete: true };
        let rule = reader.rule(&item)?;
        if reader.is_complete || action != Action::Allow {
            rules.push(rule);
        }
    }
    let authorization = Authorization { name: name.clone(), action, is_dry_run, rules };
    Ok(AuthorizationPolicy { selector: selector(&spec)?, is_attached, authorization: Arc::new(authorization) })
}

/// What a policy that cannot be read stands for while no good version of it is known: it lets nobody in.
pub(super) fn unreadable_peer_authentication(root: &Field<'_>) -> Object {
    let selector = selector(&root.get("spec")).unwrap_or_default();
    Object::PeerAuthentication(PeerAuthentication { selector, mode: Some(Mode::Strict), ports: Vec::new() })
}

/// The same for an AuthorizationPolicy: as an ALLOW it allows nobody, otherwise it denies everybody. `None` where it would
/// not refuse anybody in any case.
pub(super) fn unreadable_authorization_policy(root: &Field<'_>, name: &ObjectName) -> Option<Object> {
    let spec = root.get("spec");
    if spec.get("action").text() == Ok(Some("AUDIT")) || is_dry_run(root) == Ok(true) {
        return None;
    }
    let is_allow = matches!(spec.get("action").text(), Ok(None | Some("ALLOW")));
    let (action, rules) = if is_allow { (Action::Allow, Vec::new()) } else { (Action::Deny, vec![Rule::default()]) };
    let authorization = Arc::new(Authorization { name: name.clone(), action, is_dry_run: false, rules });
    let selector = selector(&spec).unwrap_or_default();
    Some(Object::AuthorizationPolicy(AuthorizationPolicy { selector, is_attached: false, authorization }))
}

fn is_dry_run(root: &Field<'_>) -> Result<bool> {
    let metadata = root.mapping("metadata")?;
    let annotations = metadata.get("annotations");
    let field = annotations.get(DRY_RUN);
    match field.text()? {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(field.bad("is not true or false", "Write \"true\" or \"false\".")),
    }
}

fn action(spec: &Field<'_>, notes: &mut Vec<FieldError>) -> Result<Action> {
    let field = spec.get("action");
    match field.text()? {
        None | Some("ALLOW") => Ok(Action::Allow),
        Some("DENY") => Ok(Action::Deny),
        Some("AUDIT") => Ok(Action::Audit),
        Some("CUSTOM") => {
            let message = "CUSTOM asks an external authorizer, which is not done: whom it matches is denied";
            notes.push(unsupported(&field, message.into()));
            Ok(Action::Deny)
        }
        Some(_) => Err(field.bad("is unknown", "Write ALLOW, DENY or AUDIT.")),
    }
}

/// Whether it is for a proxy of its own (a Gateway, a waypoint) and not for workloads.
fn is_attached(spec: &Field<'_>, notes: &mut Vec<FieldError>) -> Result<bool> {
    let (one, many) = (spec.get("targetRef"), spec.get("targetRefs"));
    let count = many.items()?.count();
    let Some(field) = [(one, !one.is_absent()), (many, count > 0)].into_iter().find_map(|(f, is)| is.then_some(f))
    else {
        return Ok(false);
    };
    let message = "the policy is for a gateway or a waypoint: this agent does not enforce it";
    notes.push(unsupported(&field, message.into()));
    Ok(true)
}

/// `spec.selector`; empty if there is none.
fn selector(spec: &Field<'_>) -> Result<Selector> {
    let selector = spec.mapping("selector")?;
    only(&selector, &["matchLabels"])?;
    labels(&selector.get("matchLabels")).map(Selector)
}

/// Keys and values of labels, sorted by key.
pub(super) fn labels(field: &Field<'_>) -> Result<Labels> {
    let mut labels: Vec<(Arc<str>, Arc<str>)> = Vec::new();
    for (key, field) in field.entries()? {
        labels.push((key.into(), field.text()?.unwrap_or_default().into()));
    }
    labels.sort_unstable();
    Ok(labels.into())
}

/// Fails at the first field that is not known: what it would have meant cannot be told.
fn only(field: &Field<'_>, known: &[&str]) -> Result<()> {
    match field.entries()?.find(|(key, _)| !known.contains(key)) {
        None => Ok(()),
        Some((_, field)) => {
            let remedy = format!("Remove it, or use one of {}.", known.join(", "));
            Err(field.error(Reason::BadField, "is unknown".into(), remedy))
        }
    }
}

fn unsupported(field: &Field<'_>, message: String) -> FieldError {
    field.error(Reason::PolicyUnsupported, message, Reason::PolicyUnsupported.remedy())
}

/// Reads one rule.
struct Reader<'a> {
    action: Action,
    /// Of the object: what a service account without a namespace is of.
    namespace: &'a Arc<str>,
    notes: &'a mut Vec<FieldError>,
    /// Nothing was left out.
    is_complete: bool,
}

impl Reader<'_> {
    fn rule(&mut self, item: &Field<'_>) -> Result<Rule> {
        self.leave_out(item, &["from", "to", "when"])?;
        let mut rule = Rule::default();
        let fields = item.get("from");
        for from in some_items(&fields)? {
            self.leave_out(&from, &["source"])?;
            let source = demanded(&from, "source")?;
            rule.from.push(self.source(&source)?);
        }
        let fields = item.get("to");
        for to in some_items(&fields)? {
            self.leave_out(&to, &["operation"])?;
            let operation = demanded(&to, "operation")?;
            self.leave_out(&operation, &["ports", "notPorts"])?;
            rule.to.push(Operation { ports: values(&operation, "ports", "notPorts", port)? });
        }
        let fields = item.get("when");
        for when in some_items(&fields)? {
            rule.when.extend(self.condition(&when)?);
        }
        Ok(rule)
    }

    fn source(&mut self, field: &Field<'_>) -> Result<Source> {
        self.leave_out(
            field,
            &[
                "principals",
                "notPrincipals",
                "namespaces",
                "notNamespaces",
                "serviceAccounts",
                "notServiceAccounts",
                "ipBlocks",
                "notIpBlocks",
            ],
        )?;
        let account = |field: &Field<'_>| account(field, self.namespace);
        Ok(Source {
            principals: values(field, "principals", "notPrincipals", principal)?,
            namespaces: values(field, "namespaces", "notNamespaces", pattern)?,
            service_accounts: values(field, "serviceAccounts", "notServiceAccounts", account)?,
            blocks: values(field, "ipBlocks", "notIpBlocks", block)?,
        })
    }

    /// `None` if it is about what we do not look at.
    fn condition(&mut self, when: &Field<'_>) -> Result<Option<Condition>> {
        fn of<T>(when: &Field<'_>, read: impl Fn(&Field<'_>) -> Result<T>) -> Result<Values<T>> {
            let values = values(when, "values", "notValues", read)?;
            if values.is_empty() {
                let remedy = "Add values or notValues.";
                return Err(when.error(Reason::BadField, "has neither values nor notValues".into(), remedy));
            }
            Ok(values)
        }
        self.leave_out(when, &["key", "values", "notValues"])?;
        let key = when.get("key");
        Ok(Some(match key.required_text()? {
            "source.principal" => Condition::Principal(of(when, principal)?),
            "source.namespace" => Condition::Namespace(of(when, pattern)?),
            "source.serviceAccount" => {
                Condition::ServiceAccount(of(when, |field: &Field<'_>| account(field, self.namespace))?)
            }
            "source.ip" => Condition::SourceIp(of(when, block)?),
            "destination.ip" => Condition::DestinationIp(of(when, block)?),
            "destination.port" => Condition::DestinationPort(of(when, port)?),
            other => {
                of(when, |field| field.text().map(drop))?;
                self.note(&key, &format!("{other:?}"));
                return Ok(None);
            }
        }))
    }

    /// Notes every field that is there and not among the `known`.
    fn leave_out(&mut self, field: &Field<'_>, known: &[&str]) -> Result<()> {
        for (key, field) in field.entries()?.filter(|(key, _)| !known.contains(key)) {
            // An empty list demands nothing.
            if !field.items().is_ok_and(|mut items| items.next().is_none()) {
                self.note(&field, key);
            }
        }
        Ok(())
    }

    fn note(&mut self, field: &Field<'_>, what: &str) {
        self.is_complete = false;
        let consequence = match self.action {
            Action::Allow => "this ALLOW rule matches nobody",
            Action::Deny => "this DENY rule applies whatever it is",
            Action::Audit => "this AUDIT rule applies whatever it is",
        };
        self.notes.push(unsupported(field, format!("{what} is not looked at: {consequence}")));
    }
}

/// Items of a list that is absent or has some.
fn some_items<'a>(field: &'a Field<'a>) -> Result<impl Iterator<Item = Field<'a>>> {
    let mut items = field.items()?.peekable();
    if !field.is_absent() && items.peek().is_none() {
        let remedy = "Name somebody or something, or remove it.";
        return Err(field.error(Reason::BadField, "is an empty list".into(), remedy));
    }
    Ok(items)
}

/// A mapping that has something in it.
fn demanded<'a>(parent: &'a Field<'a>, key: &'a str) -> Result<Field<'a>> {
    let field = parent.mapping(key)?;
    // Borrowed for the check only: what it finds is not returned.
    let is_empty = { Field::entries(&field)?.all(|(_, field)| field.items().is_ok_and(|mut i| i.next().is_none())) };
    if is_empty {
        return Err(parent.get(key).error(Reason::BadField, "demands nothing".into(), "Add a field to it."));
    }
    Ok(field)
}

fn values<T>(parent: &Field<'_>, any: &str, not: &str, read: impl Fn(&Field<'_>) -> Result<T>) -> Result<Values<T>> {
    let list = |key| -> Result<Vec<T>> {
        let field = parent.get(key);
        field.items()?.map(|item| read(&item)).collect()
    };
    Ok(Values { any: list(any)?, not: list(not)? })
}

fn pattern(field: &Field<'_>) -> Result<Pattern> {
    checked_pattern(field, field.required_text()?)
}

/// With `spiffe://` or, as is usual, without.
fn principal(field: &Field<'_>) -> Result<Pattern> {
    let text = field.required_text()?;
    checked_pattern(field, text.strip_prefix("spiffe://").unwrap_or(text))
}

fn checked_pattern(field: &Field<'_>, text: &str) -> Result<Pattern> {
    let inner = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
    if inner.contains('*') {
        return Err(field.bad("has a * in the wrong place", "Write text, text*, *text or *."));
    }
    if text.is_empty() {
        return Err(field.bad("is empty", "Write text, text*, *text or *."));
    }
    Ok(Pattern::new(text))
}

fn account(field: &Field<'_>, own_namespace: &Arc<str>) -> Result<ServiceAccount> {
    let text = field.required_text()?;
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (namespace.into(), name),
        None => (Arc::clone(own_namespace), text),
    };
    if is_name(&namespace) && is_name(name) {
        Ok(ServiceAccount { namespace, name: name.into() })
    } else {
        Err(field.bad("is not a service account", "Write NAMESPACE/NAME, or NAME for one of the policy's namespace."))
    }
}

fn block(field: &Field<'_>) -> Result<IpNet> {
    let text = field.required_text()?;
    cidr(text).ok_or_else(|| field.bad("is not a CIDR or an IP address", "Write 10.0.0.0/8, fd00::/8 or 10.0.0.1."))
}

fn port(field: &Field<'_>) -> Result<u16> {
    let text = field.required_text()?;
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(field.bad("is not a port, 1 to 65535", "Write a number such as \"8080\".")),
    }
}
