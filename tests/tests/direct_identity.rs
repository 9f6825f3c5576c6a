//! What 500 identities cost: alone in its process, since the memory of all of it is counted.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{collections::BTreeSet, sync::Arc};

use mesh_agent::{
    ca::{Embedded, Lifetimes},
    identity::Identities,
    model::Identity,
};
use rustls::{ClientConnection, ServerConnection, pki_types::ServerName};

const MANY: usize = 500;
/// The most they may take beside those of a node with one identity, in KiB.
const MOST: u64 = 30 * 1024;

fn identity(number: usize) -> Identity {
    format!("spiffe://cluster.local/ns/shop-{}/sa/account-{number}", number % 10).parse().unwrap()
}

/// Resident memory of this process, in KiB (proc(5)).
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn want(identities: &Identities, count: usize) {
    let wanted: BTreeSet<_> = (0..count).map(identity).collect();
    identities.want(&wanted);
    let mut changes = identities.changes();
    while !wanted.iter().all(|own| identities.client(own).is_ok()) {
        changes.changed().await.unwrap();
    }
}

/// A handshake, and the tickets after it.
fn connect(identities: &Identities, caller: usize, callee: usize) {
    let name = ServerName::try_from(format!("account-{callee}.example")).unwrap();
    let mut client = ClientConnection::new(identities.client(&identity(caller)).unwrap(), name).unwrap();
    let mut server = ServerConnection::new(identities.server(&identity(callee)).unwrap()).unwrap();
    let mut wire = Vec::new();
    while client.wants_write() || server.wants_write() {
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().unwrap();
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
        }
        wire.clear();
    }
    assert_eq!(identities.peer(client.peer_certificates().unwrap()), Some(identity(callee)));
}

#[tokio::test]
async fn five_hundred_identities_fit() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Arc::new(Embedded::open(folder.path(), "cluster.local", Lifetimes::default()).unwrap());
    let h2 = vec![b"h2".to_vec()];
    let identities = Identities::new(authority, "cluster.local".into(), h2.clone(), h2);
    let running = identities.clone();
    tokio::spawn(async move { running.run().await });
    want(&identities, 1).await;
    connect(&identities, 0, 0);
    let one = resident();
    want(&identities, MANY).await;
    let idle = resident();
    // All of them in use, each with tickets of four others.
    for caller in 0..MANY {
        for step in 1..=4 {
            connect(&identities, caller, (caller + step) % MANY);
        }
    }
    let used = resident();
    println!("one identity: {one} KiB; {MANY}: {} KiB more; with sessions: {} KiB more", idle - one, used - one);
    assert!(idle - one <= MOST && used - one <= MOST, "{one}, {idle}, {used} KiB");
}
