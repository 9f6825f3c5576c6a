//! What the shipped roles grant, and what of it was used.

use std::fmt;

use serde_json::Value;

use crate::api::Decided;

/// One verb on one resource, by one name if the rule has names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// As in the rule.
    pub verb: String,
    /// API group.
    pub group: String,
    /// Plural.
    pub resource: String,
    /// Empty: all.
    pub name: String,
}

impl fmt::Display for Grant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, group, resource, name } = self;
        write!(formatter, "{verb} {resource}")?;
        if !group.is_empty() {
            write!(formatter, ".{group}")?;
        }
        if name.is_empty() { Ok(()) } else { write!(formatter, " {name}") }
    }
}

/// What roles of this name grant: those of the chart have the name of the account that they are for.
pub fn grants(objects: &[Value], account: &str) -> Vec<Grant> {
    let roles = objects.iter().filter(|object| {
        ["ClusterRole", "Role"].iter().any(|kind| object["kind"] == *kind) && object["metadata"]["name"] == account
    });
    let words = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut grants = Vec::new();
    for rule in roles.flat_map(|role| role["rules"].as_array().into_iter().flatten()) {
        let mut names = words(&rule["resourceNames"]);
        if names.is_empty() {
            names.push(String::new());
        }
        for group in words(&rule["apiGroups"]) {
            for resource in words(&rule["resources"]) {
                for verb in words(&rule["verbs"]) {
                    for name in &names {
                        let (group, resource, name) = (group.clone(), resource.clone(), name.clone());
                        grants.push(Grant { verb: verb.clone(), group, resource, name });
                    }
                }
            }
        }
    }
    grants.sort();
    grants
}

/// Those that nothing of what was done needed.
pub fn unused(grants: &[Grant], decided: &[Decided]) -> Vec<String> {
    let is_used = |grant: &Grant| {
        decided.iter().any(|done| {
            (&done.verb, &done.group, &done.resource) == (&grant.verb, &grant.group, &grant.resource)
                && (grant.name.is_empty() || grant.name == done.name)
        })
    };
    grants.iter().filter(|grant| !is_used(grant)).map(ToString::to_string).collect()
}

/// What was refused.
pub fn refused(decided: &[Decided]) -> Vec<String> {
    let refused = decided.iter().filter(|done| !done.is_allowed);
    refused
        .map(|done| format!("{} {}.{} {}/{}", done.verb, done.resource, done.group, done.namespace, done.name))
        .collect()
}
