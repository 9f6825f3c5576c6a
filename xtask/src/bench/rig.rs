//! What every measurement needs: folder, accounts, load tool, how often to try.

use std::{path::PathBuf, time::Duration};

use crate::lab::{
    Workspace,
    accounts::{Accounts, Role},
    process::Launch,
};

/// See the fields.
pub(super) struct Rig {
    /// Files of the run.
    pub(super) workspace: Workspace,
    /// CPU time by role.
    pub(super) accounts: Accounts,
    /// `mesh-load`.
    pub(super) tool: PathBuf,
    /// `mesh-agent`.
    pub(super) agent: PathBuf,
    /// The one CPU that everything measured runs on.
    pub(super) pin: Option<u32>,
    /// Length of a measurement.
    pub(super) length: Duration,
    /// CPUs that may be busy with something else before a measurement is repeated.
    pub(super) noise: f64,
    /// Most measurements in search of a quiet one.
    pub(super) tries: u32,
    /// Idle connections to hold.
    pub(super) hold: u64,
    /// Pods on the meshed node.
    pub(super) pods: usize,
    /// Where the project's own binaries are.
    pub(super) binaries: PathBuf,
    /// Pods of the large cluster.
    pub(super) crowd: usize,
    /// Changes a second in it.
    pub(super) changes: f64,
    /// How often an endpoint moves to see how long it takes.
    pub(super) flips: u32,
}

impl Rig {
    /// A process in a namespace, charged to a role.
    pub(super) fn launch<'a>(&'a self, netns: &'a str, role: Role) -> Launch<'a> {
        Launch::new(netns, &self.accounts, role, self.pin)
    }
}
