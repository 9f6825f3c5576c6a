//! Whether an API server lets an agent read what it needs: for a look at it before an agent runs.

use super::{
    failure::Failure,
    request::{Lines, whole},
    resource::{self, Resource},
    watch::version,
};
use crate::{
    discovery::{field::Field, object::Kind},
    kubernetes::{Access, Error},
};

/// What came of asking for one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It can be listed and watched.
    Readable,
    /// The server does not have it, and need not.
    Absent,
    /// There is no Node of this node's name.
    NoNode,
    /// It cannot be read, and why.
    Refused(String),
}

/// Asks once for each kind that the source reads, for the node of this name: the resource, and what came of it.
///
/// # Errors
/// It is not known where the server is, or the agent cannot be its client.
pub async fn survey(access: &Access, node: &str) -> Result<Vec<(&'static str, Outcome)>, Error> {
    let client = access.watcher().await?;
    let mut outcomes = Vec::new();
    for resource in resource::all(node) {
        let plural = resource.plural();
        let outcome = match ask(&client, &resource).await {
            Ok(outcome) => outcome,
            Err(failure) if failure.is_not_found() && resource.is_optional() => Outcome::Absent,
            Err(failure) => Outcome::Refused(failure.to_string()),
        };
        outcomes.push((plural, outcome));
    }
    Ok(outcomes)
}

async fn ask(client: &kube::Client, resource: &Resource) -> Result<Outcome, Failure> {
    let path = resource.path(0);
    let page = whole(client, &format!("{path}?limit=1{}", resource.selector), resource.keep_page).await?;
    let version = version(&page).unwrap_or_default();
    Lines::open(client, &format!("{path}?watch=true&timeoutSeconds=1&resourceVersion={version}{}", resource.selector))
        .await?;
    let root = Field::root(&page);
    let items = root.get("items");
    let has_some = items.items().is_ok_and(|mut items| items.next().is_some());
    Ok(if resource.kind == Kind::Node && !has_some { Outcome::NoNode } else { Outcome::Readable })
}
