//! What the API server is told of this node's pods.

use std::collections::HashMap;

use super::{control::Control, status};
use crate::{
    kubernetes::writeback::Report,
    model::{Problem, Reason, Severity},
};

impl Control {
    /// Tells what is known now. It costs nothing where that is what was known before.
    pub(super) fn tell_the_server(&self) {
        if let Some(feed) = self.feed.as_ref().filter(|_| self.mesh.version > 0) {
            feed.tell(reports(self));
        }
    }
}

fn reports(control: &Control) -> Vec<Report> {
    let of_objects = by_pod(&control.mesh.problems);
    let workloads = control.pods.by_uid.values();
    let mut reports: Vec<Report> = workloads
        .map(|workload| {
            let enrolled = control.pods.enrolled.get(&workload.name);
            let known = of_objects.get(workload.name.to_string().as_str()).copied();
            let problem = worst(known, &status::problems_of(control, workload));
            Report {
                name: workload.name.clone(),
                uid: workload.uid.clone(),
                enrolled: workload.enrolled,
                state: status::state(control, Some(workload), enrolled),
                mode: workload.mode,
                problem,
            }
        })
        .collect();
    reports.sort_by(|a, b| a.name.cmp(&b.name));
    reports
}

/// The worst problem of each pod's object.
fn by_pod(problems: &[Problem]) -> HashMap<&str, &Problem> {
    let mut worst: HashMap<&str, &Problem> = HashMap::new();
    for problem in problems {
        let Some(pod) = problem.object.strip_prefix("Pod ") else { continue };
        let known = worst.entry(pod).or_insert(problem);
        if problem.severity > known.severity {
            *known = problem;
        }
    }
    worst
}

fn worst(of_object: Option<&Problem>, of_pod: &[Problem]) -> Option<(Reason, String)> {
    let all = || of_pod.iter().chain(of_object);
    let chosen = all().find(|problem| problem.severity == Severity::Error).or_else(|| all().next());
    chosen.map(|problem| (problem.reason, problem.message.clone()))
}
