//! A test double of kube-apiserver 1.36, for the real agent and any other client: TLS on 127.0.0.1, a store with versions,
//! watches, RBAC, tokens, custom resources, and faults on order. What it does is what recorded exchanges with a real server
//! show (`tests/fixtures/kubernetes-1.36`); what it does not do it answers with 501.
//!
//! No controllers run here: nothing makes pods of deployments or endpoints of services. Tests write those objects, with
//! [`ApiServer::put`] in place of the kubelet and the controllers. Three exceptions, since clients wait for them:
//! definitions of custom resources become established, namespaces end, services get addresses.
#![allow(
    clippy::indexing_slicing,
    reason = "objects are JSON trees; reading what is not there gives null, and writing into what is no object is our mistake"
)]

mod apply;
mod body;
mod crd;
mod defaults;
mod delete;
mod discovery;
mod entry;
mod event;
mod fault;
mod form;
mod forward;
mod handle;
mod kinds;
mod large;
mod list;
mod namespace;
mod ownership;
mod patch;
mod rbac;
mod request;
mod review;
mod rules;
mod schema;
mod selector;
mod server;
mod shape;
mod state;
mod status;
mod store;
mod time;
mod tls;
mod token;
mod typed;
mod validate;
mod watch;
mod write;

pub use fault::{Effect, Fault, Pace, Received};
pub use large::{Size, fill};
pub use rbac::{Decided, User};
pub use server::{ApiServer, Options};
pub use token::ISSUER;
pub use watch::Cut;

use state::{Shared, State, Work, random_suffix, settle, uid, yaml};
