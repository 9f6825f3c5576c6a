//! How far the pods of a namespace are. Pure.

use crate::{kubernetes::cluster::PodSeen, model::PodState};

use super::rollout::Toward;

/// The pods of a namespace on their way in or out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Those that have to confirm, and those that have.
    pub(super) wanted: usize,
    pub(super) confirmed: usize,
    /// The others: pod, node and why.
    pub(super) missing: Vec<Missing>,
    /// Those that need not, since they cannot be captured: pod and why.
    pub(super) exempt: Vec<Missing>,
}

/// A pod that has not confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) pod: String,
    pub(super) node: String,
    pub(super) why: String,
}

/// How far they are. Pods that do not run yet will be armed before they do; those that say otherwise for themselves are not
/// the namespace's.
pub(super) fn of(pods: &[PodSeen], toward: Toward) -> Progress {
    let mut progress = Progress::default();
    let concerned = pods.iter().filter(|pod| pod.running && pod.mesh.is_none());
    for pod in concerned {
        let missing =
            |why: String| Missing { pod: format!("{}/{}", pod.namespace, pod.name), node: pod.node.clone(), why };
        if pod.host_network && toward == Toward::In {
            progress.exempt.push(missing("it uses its node's network and cannot be captured".to_owned()));
            continue;
        }
        progress.wanted += 1;
        match why_not(pod, toward) {
            None => progress.confirmed += 1,
            Some(why) => progress.missing.push(missing(why)),
        }
    }
    progress
}

fn why_not(pod: &PodSeen, toward: Toward) -> Option<String> {
    match (&pod.status, toward) {
        (None, Toward::In) => Some("no word from its node's agent".to_owned()),
        (Some(status), Toward::In) if status.state == PodState::Armed => None,
        (Some(status), Toward::In) => {
            let reason = status.reason.as_deref().unwrap_or("not armed");
            Some(format!("{reason}: {}", status.message.as_deref().unwrap_or("no message")))
        }
        (None, Toward::Out) => None,
        (Some(_), Toward::Out) => Some("its node's agent has not let go of it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::writeback::PodStatus;

    fn pod(name: &str, status: Option<&str>) -> PodSeen {
        PodSeen {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            node: "a".to_owned(),
            host_network: false,
            running: true,
            mesh: None,
            status: status.and_then(PodStatus::parse),
        }
    }

    const ARMED: &str = r#"{"state":"armed","mode":"permissive","since":"2026-11-22T10:00:00Z"}"#;
    const FAILED: &str =
        r#"{"state":"failed","mode":"permissive","since":"","reason":"arm_failed","message":"no slot"}"#;

    #[test]
    fn who_does_not_confirm_is_named_with_the_reason() {
        let pods = [pod("a", Some(ARMED)), pod("b", Some(FAILED)), pod("c", None)];
        let progress = of(&pods, Toward::In);
        assert_eq!((progress.wanted, progress.confirmed), (3, 1));
        let why: Vec<_> = progress.missing.iter().map(|missing| (missing.pod.as_str(), missing.why.as_str())).collect();
        assert_eq!(why, [("shop/b", "arm_failed: no slot"), ("shop/c", "no word from its node's agent")]);
        let out = of(&pods, Toward::Out);
        assert_eq!((out.wanted, out.confirmed), (3, 1));
    }

    #[test]
    fn those_that_cannot_or_need_not_are_not_waited_for() {
        let pods = [
            PodSeen { host_network: true, ..pod("a", None) },
            PodSeen { running: false, ..pod("b", None) },
            PodSeen { mesh: Some("disabled".to_owned()), ..pod("c", None) },
        ];
        let progress = of(&pods, Toward::In);
        assert!(progress.missing.is_empty() && progress.wanted == 0);
        assert_eq!(progress.exempt.len(), 1);
    }
}
