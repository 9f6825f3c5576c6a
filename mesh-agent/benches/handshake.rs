//! What mutual TLS costs before the first byte: both ends of a handshake in one thread, in memory. Full and resumed, with
//! and without the post-quantum half of the key exchange, with a chain of leaf and intermediate. Times are CPU times of the
//! thread: what else runs on the machine does not count.

#![expect(clippy::expect_used, reason = "a bench that cannot be set up has to stop")]

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    sync::Arc,
    time::Duration,
};

use criterion::{Bencher, Criterion, Throughput, criterion_group, criterion_main};
use mesh_agent::{
    ca::{Embedded, Lifetimes},
    identity::{Identities, Settings, handshake_reason, provider},
    model::Identity,
};
use nix::time::{ClockId, clock_gettime};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection,
    client::Resumption,
    crypto::{
        SupportedKxGroup,
        aws_lc_rs::{cipher_suite, kx_group},
    },
    pki_types::ServerName,
};

/// Both ends' configurations, as the proxy uses them.
fn configs(settings: Settings) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let [caller, callee]: [Identity; 2] =
        ["spiffe://cluster.local/ns/shop/sa/cart", "spiffe://cluster.local/ns/shop/sa/db"]
            .map(|uri| uri.parse().expect("an identity"));
    let folder = tempfile::tempdir().expect("a folder");
    let _entered = runtime.enter();
    let authority = Embedded::open(folder.path(), "cluster.local", Lifetimes::default()).expect("an authority");
    let identities = Identities::with(Arc::new(authority), settings);
    identities.want(&BTreeSet::from([caller.clone(), callee.clone()]));
    let mut changes = identities.changes();
    runtime.block_on(async {
        let ready = changes.wait_for(|_| identities.client(&caller).is_ok() && identities.server(&callee).is_ok());
        tokio::select! {
            ready = ready => drop(ready.expect("the store lives")),
            () = identities.run() => {}
        }
    });
    (identities.client(&caller).expect("a certificate"), identities.server(&callee).expect("a certificate"))
}

fn settings(group: &'static dyn SupportedKxGroup) -> Settings {
    let mut cryptography = provider();
    cryptography.kx_groups = vec![group];
    Settings { provider: Arc::new(cryptography), ..Settings::new("cluster.local".into(), Vec::new(), Vec::new()) }
}

/// Until nobody has anything to send: with the tickets.
fn connect(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (ClientConnection, ServerConnection) {
    let name = ServerName::try_from("db.shop").expect("a name");
    let mut client = ClientConnection::new(client.clone(), name).expect("a client");
    let mut server = ServerConnection::new(server.clone()).expect("a server");
    let mut wire = Vec::with_capacity(16 * 1024);
    while client.wants_write() || server.wants_write() {
        carry(&mut client, &mut server, &mut wire);
        carry(&mut server, &mut client, &mut wire);
    }
    (client, server)
}

fn carry<From, To>(
    from: &mut impl std::ops::DerefMut<Target = rustls::ConnectionCommon<From>>,
    to: &mut impl std::ops::DerefMut<Target = rustls::ConnectionCommon<To>>,
    wire: &mut Vec<u8>,
) {
    wire.clear();
    while from.wants_write() {
        from.write_tls(wire).expect("memory");
    }
    let mut rest = wire.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).expect("memory");
        to.process_new_packets().map_err(|error| handshake_reason(&error)).expect("a handshake of equals");
    }
}

/// CPU time of this thread.
fn cpu() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock"))
}

fn of_cpu(b: &mut Bencher<'_>, mut run: impl FnMut()) {
    b.iter_custom(|times| {
        let start = cpu();
        (0..times).for_each(|_| run());
        cpu().saturating_sub(start)
    });
}

fn handshakes(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake");
    group.throughput(Throughput::Elements(1));
    for (name, key_exchange) in [("x25519mlkem768", kx_group::X25519MLKEM768), ("x25519", kx_group::X25519)] {
        let (client, server) = configs(settings(key_exchange));
        let mut forgetful = ClientConfig::clone(&client);
        forgetful.resumption = Resumption::disabled();
        let forgetful = Arc::new(forgetful);
        let of_kind = |client, kind| {
            let (_, ended) = connect(client, &server);
            assert_eq!(ended.handshake_kind(), Some(kind));
        };
        group.bench_function(format!("full/{name}"), |b| of_cpu(b, || of_kind(&forgetful, HandshakeKind::Full)));
        connect(&client, &server);
        group.bench_function(format!("resumed/{name}"), |b| of_cpu(b, || of_kind(&client, HandshakeKind::Resumed)));
    }
    group.finish();
}

/// A megabyte through an established connection, encrypted and decrypted on one core.
fn records(c: &mut Criterion) {
    const SIZE: usize = 1 << 20;
    let mut group = c.benchmark_group("records");
    group.throughput(Throughput::Bytes(SIZE as u64));
    for (name, suite) in [
        ("aes-256-gcm", cipher_suite::TLS13_AES_256_GCM_SHA384),
        ("aes-128-gcm", cipher_suite::TLS13_AES_128_GCM_SHA256),
    ] {
        let mut settings = settings(kx_group::X25519MLKEM768);
        let mut cryptography = provider();
        cryptography.cipher_suites = vec![suite];
        settings.provider = Arc::new(cryptography);
        let (client, server) = configs(settings);
        let (mut client, mut server) = connect(&client, &server);
        let (message, mut wire) = (vec![7; 16 * 1024], Vec::with_capacity(32 * 1024));
        let mut taken = vec![0; 16 * 1024];
        group.bench_function(name, |b| {
            of_cpu(b, || {
                for _ in 0..SIZE / message.len() {
                    client.writer().write_all(&message).expect("room");
                    carry(&mut client, &mut server, &mut wire);
                    server.reader().read_exact(&mut taken).expect("what was written");
                }
            });
        });
    }
    group.finish();
}

criterion_group!(tls, handshakes, records);
criterion_main!(tls);
