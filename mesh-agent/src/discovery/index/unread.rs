//! What is made of pods whose annotations, or those of their namespace, cannot be read, when no good version of them is known
//! since this agent started: the kernel still knows how they were.

use std::sync::Arc;

use super::{policies::UnreadModes, problems::problem};
use crate::{
    discovery::object::{Doubt, Loaded, Settings},
    model::{Exclusions, Left, Mode, Problem, Reason, Workload},
};

/// What is said of a pod, and how it was. Where nothing is in doubt, how it was does not matter.
pub(super) struct Unread<'a> {
    pub(super) own: &'a Settings,
    pub(super) inherited: &'a Settings,
    pub(super) left: Option<Left>,
}

impl Unread<'_> {
    /// What can be read is obeyed. What a doubtful object does not say is as it was; where it never was, whoever has to be
    /// strict is in the mesh, and nobody else is for whom it is unknown.
    pub(super) fn is_enrolled(&self, mode: Mode) -> bool {
        let was_left = self.left.is_some();
        if let Some(said) = self.own.mesh {
            return said;
        }
        match (&self.own.doubt, self.inherited.mesh, &self.inherited.doubt) {
            (Some(_), ..) if was_left => true,
            (Some(Doubt { of_mesh: true, .. }), ..) => mode == Mode::Strict,
            (_, Some(said), _) => said,
            (_, None, Some(_)) if was_left => true,
            (_, None, Some(Doubt { of_mesh: true, .. })) => mode == Mode::Strict,
            (_, None, _) => false,
        }
    }

    /// The modes that take the place of annotations that cannot be read.
    pub(super) fn modes(&self) -> UnreadModes {
        let left = self.left.as_ref().map(|left| left.mode);
        let unread = |settings: &Settings| left.filter(|_| settings.doubt.is_some() && settings.mode.is_none());
        UnreadModes { namespace: unread(self.inherited), pod: unread(self.own) }
    }

    /// Each of its own, else of the namespace.
    pub(super) fn exclusions(&self) -> Exclusions {
        let none = Exclusions::default();
        let left = self.left.as_ref().map_or(&none, |left| &left.exclusions);
        Exclusions {
            outbound_ports: self.first(|settings| settings.outbound_ports.as_ref(), &left.outbound_ports),
            inbound_ports: self.first(|settings| settings.inbound_ports.as_ref(), &left.inbound_ports),
            outbound_cidrs: self.first(|settings| settings.outbound_cidrs.as_ref(), &left.outbound_cidrs),
            inbound_cidrs: self.first(|settings| settings.inbound_cidrs.as_ref(), &left.inbound_cidrs),
        }
    }

    fn first<T: Clone>(&self, of: impl Fn(&Settings) -> Option<&Vec<T>>, left: &[T]) -> Vec<T> {
        for settings in [self.own, self.inherited] {
            match of(settings) {
                Some(said) => return said.clone(),
                None if settings.doubt.is_some() && self.left.is_some() => return left.to_vec(),
                None => {}
            }
        }
        Vec::new()
    }

    /// What is told of the pod.
    pub(super) fn problem(&self, loaded: &Loaded, workload: &Workload) -> Option<Problem> {
        let namespace = &workload.name.namespace;
        let (doubt, whose) = match (&self.own.doubt, &self.inherited.doubt) {
            (Some(doubt), _) => (doubt, "its own".to_owned()),
            (None, Some(_)) if self.own.mesh == Some(false) => return None,
            (None, Some(doubt)) => (doubt, format!("Namespace {namespace}'s")),
            (None, None) => return None,
        };
        let outcome = match (workload.enrolled, &self.left) {
            (true, Some(_)) => format!("it stays in the mesh as it was, mode {}", workload.mode),
            (true, None) => format!("what can be read puts it into the mesh, mode {}", workload.mode),
            (false, _) => "it was not in the mesh, and is not".to_owned(),
        };
        let Doubt { field, .. } = doubt;
        let message = format!("{whose} {field} cannot be read: {outcome}");
        Some(problem(Reason::SettingsUnread, loaded, &Arc::clone(field), message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(mesh: Option<bool>, doubt: Option<bool>) -> Settings {
        let doubt = doubt.map(|of_mesh| Doubt { field: "x".into(), of_mesh });
        Settings { mesh, doubt, ..Settings::default() }
    }

    /// Whether a pod is in the mesh: that was strict, of which nothing is known, and of which nothing is known but which is
    /// to be strict.
    fn enrolled(own: &Settings, inherited: &Settings) -> [bool; 3] {
        let left = Some(Left { mode: Mode::Strict, ..Left::default() });
        let unread = |left| Unread { own, inherited, left };
        [
            unread(left).is_enrolled(Mode::Strict),
            unread(None).is_enrolled(Mode::Permissive),
            unread(None).is_enrolled(Mode::Strict),
        ]
    }

    #[test]
    fn what_can_be_read_is_obeyed_and_the_rest_is_as_it_was() {
        let (good, of_mesh, of_other) = (None, Some(true), Some(false));
        let (on, off, silent) = (Some(true), Some(false), None);
        for (own, inherited, expected) in [
            // Nothing is in doubt: how it was does not matter.
            ((silent, good), (silent, good), [false; 3]),
            ((silent, good), (off, good), [false; 3]),
            ((silent, good), (on, good), [true; 3]),
            ((off, good), (on, good), [false; 3]),
            // Of the namespace.
            ((silent, good), (silent, of_mesh), [true, false, true]),
            ((silent, good), (silent, of_other), [true, false, false]),
            ((silent, good), (off, of_other), [false; 3]),
            ((silent, good), (on, of_other), [true; 3]),
            ((off, good), (silent, of_mesh), [false; 3]),
            ((on, good), (silent, of_mesh), [true; 3]),
            // Of the pod: its namespace may be what it was an exception from.
            ((silent, of_mesh), (on, good), [true, false, true]),
            ((silent, of_mesh), (off, good), [true, false, true]),
            ((silent, of_other), (on, good), [true; 3]),
            ((silent, of_other), (off, good), [true, false, false]),
            ((off, of_other), (on, good), [false; 3]),
            ((on, of_other), (off, good), [true; 3]),
            // Of both.
            ((silent, of_mesh), (silent, of_mesh), [true, false, true]),
            ((silent, of_other), (silent, of_mesh), [true, false, true]),
        ] {
            let (own, inherited) = (settings(own.0, own.1), settings(inherited.0, inherited.1));
            assert_eq!(enrolled(&own, &inherited), expected, "{own:?} in {inherited:?}");
        }
    }

    #[test]
    fn modes_and_exclusions_that_cannot_be_read_are_as_they_were() {
        let exclusions = Exclusions { outbound_ports: vec![25], ..Exclusions::default() };
        let left = Some(Left { mode: Mode::Strict, exclusions: Arc::new(exclusions) });
        let doubtful = settings(None, Some(false));
        let clear = Settings { outbound_ports: Some(vec![80]), mode: Some(Mode::Permissive), ..settings(None, None) };
        let of = |own, inherited| Unread { own, inherited, left: left.clone() };
        let strict = Some(Mode::Strict);
        let unread = of(&doubtful, &clear);
        assert_eq!(unread.modes(), UnreadModes { namespace: None, pod: strict });
        assert_eq!(unread.exclusions().outbound_ports, [25]);
        let unread = of(&clear, &doubtful);
        assert_eq!(unread.modes(), UnreadModes { namespace: strict, pod: None });
        assert_eq!(unread.exclusions().outbound_ports, [80]);
        let unread = of(&clear, &clear);
        assert_eq!(unread.modes(), UnreadModes::default());
        let unread = Unread { left: None, ..of(&doubtful, &clear) };
        assert_eq!(unread.modes(), UnreadModes::default());
        assert_eq!(unread.exclusions().outbound_ports, [80], "what is in force excludes nothing that cannot be read");
    }
}
