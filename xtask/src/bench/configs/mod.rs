//! The configurations: what stands between client and server.

mod envoy;
mod haproxy;
mod hook;
mod large;
mod mesh;

use std::{net::Ipv4Addr, path::PathBuf};

use anyhow::{Context, Result};

use super::{
    rig::Rig,
    suites::{Figures, Selection},
    topology::{NODE_1, POD_B, POD_C, Topology},
    wire::Wire,
};
use crate::lab::process::Process;
use hook::Hook;
use large::{Changes, Large};
use mesh::{Identities, Mesh, Way};

/// See [`Config::parse`].
pub(super) struct Config {
    name: String,
    kind: Kind,
}

enum Kind {
    Direct,
    DirectCross,
    Mesh(Way),
    Large(large::Path, Changes),
    Envoy(envoy::Protocol, envoy::Place),
    Haproxy,
    Hook(PathBuf),
}

/// The built-in ones.
const BUILT_IN: [(&str, Kind); 18] = [
    ("direct", Kind::Direct),
    ("direct-cross", Kind::DirectCross),
    ("mesh-direct", Kind::Mesh(Way::Direct)),
    ("mesh-relay", Kind::Mesh(Way::Relay)),
    ("mesh-off", Kind::Mesh(Way::Off)),
    ("mesh-mtls-cross", Kind::Mesh(Way::Cross(Identities::Few))),
    ("mesh-mtls-500-cross", Kind::Mesh(Way::Cross(Identities::Many))),
    ("mesh-mtls-rotating-cross", Kind::Mesh(Way::Cross(Identities::Rotating))),
    ("mesh-direct-large", Kind::Large(large::Path::Direct, Changes::None)),
    ("mesh-direct-unwatched", Kind::Large(large::Path::Direct, Changes::Unwatched)),
    ("mesh-direct-churn", Kind::Large(large::Path::Direct, Changes::Watched)),
    ("mesh-relay-large", Kind::Large(large::Path::Relay, Changes::None)),
    ("mesh-relay-unwatched", Kind::Large(large::Path::Relay, Changes::Unwatched)),
    ("mesh-relay-churn", Kind::Large(large::Path::Relay, Changes::Watched)),
    ("envoy-http-mtls", Kind::Envoy(envoy::Protocol::Http, envoy::Place::SameNode)),
    ("envoy-tcp-mtls", Kind::Envoy(envoy::Protocol::Tcp, envoy::Place::SameNode)),
    ("envoy-tcp-mtls-cross", Kind::Envoy(envoy::Protocol::Tcp, envoy::Place::OtherNode)),
    ("haproxy-http", Kind::Haproxy),
];

impl Config {
    /// By name, the built-in ones first, then executables in the folders of hooks.
    ///
    /// # Errors
    /// There is none of that name.
    pub(super) fn parse(name: &str, hooks: &[PathBuf]) -> Result<Self> {
        let built_in = BUILT_IN.into_iter().find(|(known, _)| *known == name).map(|(_, kind)| kind);
        let kind = built_in.or_else(|| hook::find(name, hooks).map(Kind::Hook)).with_context(|| {
            let known = BUILT_IN.map(|(known, _)| known).join(", ");
            format!("--configs {name}: neither one of {known}, nor an executable in a --hooks folder")
        })?;
        Ok(Self { name: name.to_owned(), kind })
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The configuration that it is compared with: without anything in between, or without changes in the cluster.
    pub(super) fn baseline(&self) -> &'static str {
        match self.kind {
            Kind::Large(large::Path::Direct, _) => return "mesh-direct-large",
            Kind::Large(large::Path::Relay, _) => return "mesh-relay-large",
            _ => {}
        }
        if self.name.ends_with("-cross") { "direct-cross" } else { "direct" }
    }

    /// What is to be seen on the link between the nodes, if the load crosses it.
    pub(super) fn wire(&self) -> Option<Wire> {
        match self.kind {
            Kind::DirectCross => Some(Wire::Clear),
            Kind::Mesh(Way::Cross(_)) | Kind::Envoy(_, envoy::Place::OtherNode) => Some(Wire::Encrypted),
            _ => None,
        }
    }

    /// Whether it needs our agent.
    pub(super) fn is_mesh(&self) -> bool {
        matches!(self.kind, Kind::Mesh(_) | Kind::Large(..))
    }

    /// Whether it needs an API server.
    pub(super) fn is_large(&self) -> bool {
        matches!(self.kind, Kind::Large(..))
    }

    /// Checks that what it needs is there, and installs what can be installed beside the project.
    ///
    /// # Errors
    /// Something is missing: the message has the remedy.
    pub(super) fn require(&self) -> Result<()> {
        match &self.kind {
            Kind::Envoy(..) => envoy::require(),
            Kind::Haproxy => haproxy::require().map(|_| ()),
            Kind::Direct | Kind::DirectCross | Kind::Mesh(_) | Kind::Large(..) | Kind::Hook(_) => Ok(()),
        }
    }

    /// Starts it.
    ///
    /// # Errors
    /// It does not start.
    pub(super) fn start(&self, rig: &Rig, topology: &Topology) -> Result<Running> {
        let local = |between| Running { target: POD_B, between };
        Ok(match &self.kind {
            Kind::Direct => local(Between::Nothing),
            Kind::DirectCross => Running { target: POD_C, between: Between::Nothing },
            Kind::Mesh(way) => {
                let target = if matches!(way, Way::Cross(_)) { POD_C } else { POD_B };
                Running { target, between: Between::Mesh(Mesh::start(rig, topology, *way)?) }
            }
            Kind::Large(path, changes) => {
                let between = Between::Large(Box::new(Large::start(rig, topology, *path, *changes)?));
                Running { target: large::SERVICE, between }
            }
            Kind::Envoy(protocol, place) => {
                let sidecars = envoy::start(rig, topology, *protocol, *place)?;
                Running { target: place.address(), between: Between::Proxies(sidecars) }
            }
            Kind::Haproxy => {
                Running { target: NODE_1, between: Between::Proxies(vec![haproxy::start(rig, topology)?]) }
            }
            Kind::Hook(path) => {
                let hook = Hook::up(path, rig)?;
                Running { target: hook.target()?.unwrap_or(POD_B), between: Between::Hook(hook) }
            }
        })
    }
}

/// A configuration that was started. Stopped on drop.
pub(super) struct Running {
    target: Ipv4Addr,
    between: Between,
}

enum Between {
    Nothing,
    Mesh(Mesh),
    Large(Box<Large>),
    Proxies(Vec<Process>),
    Hook(Hook),
}

impl Running {
    /// The address that the client dials.
    pub(super) fn target(&self) -> Ipv4Addr {
        self.target
    }

    /// Processes in between.
    ///
    /// # Errors
    /// A hook does not tell.
    pub(super) fn pids(&self) -> Result<Vec<u32>> {
        match &self.between {
            Between::Nothing => Ok(Vec::new()),
            Between::Mesh(mesh) => Ok(mesh.pids()),
            Between::Large(large) => Ok(vec![large.pid()]),
            Between::Proxies(proxies) => Ok(proxies.iter().map(Process::pid).collect()),
            Between::Hook(hook) => hook.pids(),
        }
    }

    /// Whether the load went the way that the configuration's name promises.
    ///
    /// # Errors
    /// It did not.
    pub(super) fn verify(&self) -> Result<()> {
        match &self.between {
            Between::Mesh(mesh) => mesh.verify(),
            Between::Large(large) => large.verify(),
            Between::Nothing | Between::Proxies(_) | Between::Hook(_) => Ok(()),
        }
    }

    /// Figures that only this configuration has, after the load.
    ///
    /// # Errors
    /// Something failed that must not.
    pub(super) fn figures(
        &self,
        rig: &Rig,
        topology: &Topology,
        only: &Selection,
        figures: &mut Figures,
    ) -> Result<()> {
        match &self.between {
            Between::Large(large) => large.figures(rig, topology, only, figures),
            Between::Nothing | Between::Mesh(_) | Between::Proxies(_) | Between::Hook(_) => Ok(()),
        }
    }

    /// The ends of the proxies' logs.
    pub(super) fn last_words(&self) -> Option<String> {
        match &self.between {
            Between::Proxies(proxies) => Some(proxies.iter().map(Process::last_words).collect::<Vec<_>>().join("\n")),
            Between::Mesh(mesh) => Some(mesh.last_words()),
            Between::Large(large) => Some(large.last_words()),
            Between::Nothing | Between::Hook(_) => None,
        }
    }
}
