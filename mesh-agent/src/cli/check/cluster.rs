//! Whether the API server lets the agent read what it needs.

use super::Check;
use crate::{
    discovery::kubernetes::{Outcome, survey},
    kubernetes::Access,
};

const NAME: &str = "API server";
const PERMISSIONS: &str = "Give its service account list and watch on it: see docs/KUBERNETES.md.";

pub(super) fn check(access: &Access, node: &str) -> Check {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Check::fail(NAME, error.to_string(), "Raise the limits of this process."),
    };
    match runtime.block_on(async { tokio::join!(access.server(), survey(access, node)) }) {
        (Ok(server), Ok(outcomes)) => judge(&server, node, &outcomes),
        (Err(error), _) | (_, Err(error)) => {
            Check::fail(NAME, error.to_string(), "Run it in a pod, or give --kubeconfig FILE.")
        }
    }
}

fn judge(server: &str, node: &str, outcomes: &[(&str, Outcome)]) -> Check {
    let mut absent = Vec::new();
    for (plural, outcome) in outcomes {
        match outcome {
            Outcome::Readable => {}
            Outcome::Absent => absent.push(*plural),
            Outcome::NoNode => {
                let remedy = "Give the name of this node's Node object by --node-name.";
                return Check::fail(NAME, format!("{server} has no Node {node:?}"), remedy);
            }
            Outcome::Refused(why) => return Check::fail(NAME, format!("{server}: {plural}: {why}"), PERMISSIONS),
        }
    }
    match absent.as_slice() {
        [] => Check::ok(NAME, format!("{server}: all can be read")),
        absent => Check::ok(NAME, format!("{server}: all can be read; not there: {}", absent.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Outcome as Mark;

    #[test]
    fn what_cannot_be_read_fails_and_what_need_not_be_there_does_not() {
        let readable = ("pods", Outcome::Readable);
        let found = |outcome| judge("https://s", "n1", &[readable.clone(), ("things", outcome)]);
        let check = found(Outcome::Absent);
        assert_eq!((check.outcome, &*check.found), (Mark::Ok, "https://s: all can be read; not there: things"));
        let check = found(Outcome::Refused("forbidden".into()));
        assert_eq!((check.outcome, &*check.found), (Mark::Fail, "https://s: things: forbidden"));
        let check = found(Outcome::NoNode);
        assert!(check.outcome == Mark::Fail && check.found.contains("\"n1\""), "{check:?}");
    }
}
