//! What relaying costs: a round trip and a megabyte through the relay, beside the same without it, on loopback.

#![expect(clippy::expect_used, reason = "a bench that cannot be set up has to stop")]

use std::{net::SocketAddr, sync::Arc};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mesh_agent::{
    model::ObjectName,
    proxy::relay,
    telemetry::{Connection, Direction, WorkerCounters},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    task::LocalSet,
};

async fn pair() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let client = TcpStream::connect(listener.local_addr()?).await?;
    let (server, _) = listener.accept().await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok((client, server))
}

/// Answers each message of `size` bytes with one byte.
async fn acknowledge(mut server: TcpStream, size: usize) -> std::io::Result<()> {
    let mut buffer = vec![0; size];
    loop {
        server.read_exact(&mut buffer).await?;
        server.write_all(&[1]).await?;
    }
}

async fn client(relayed: bool, size: usize) -> std::io::Result<TcpStream> {
    let (client, server) = pair().await?;
    if !relayed {
        tokio::task::spawn_local(acknowledge(server, size));
        return Ok(client);
    }
    let (upstream, app) = pair().await?;
    tokio::task::spawn_local(acknowledge(app, size));
    tokio::task::spawn_local(async move {
        let worker = Arc::new(WorkerCounters::new(0));
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let name = ObjectName::new("bench", "pod");
        let mut record = Connection::open(Arc::default(), worker, name, None, Direction::Outbound, peer);
        let _ = relay::run(&server, &upstream, &mut record).await;
    });
    Ok(client)
}

async fn exchange(client: &mut TcpStream, message: &[u8]) -> std::io::Result<u8> {
    client.write_all(message).await?;
    client.read_u8().await
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn benches(c: &mut Criterion) {
    for size in [64, 1024 * 1024] {
        let mut group = c.benchmark_group(format!("exchange/{size}"));
        group.throughput(Throughput::Bytes(size as u64));
        for (name, relayed) in [("plain", false), ("relayed", true)] {
            let (runtime, local) = (runtime(), LocalSet::new());
            let mut stream = local.block_on(&runtime, client(relayed, size)).expect("sockets on loopback");
            let message = vec![7; size];
            group.bench_function(name, |b| b.iter(|| local.block_on(&runtime, exchange(&mut stream, &message))));
        }
        group.finish();
    }
}

criterion_group!(relays, benches);
criterion_main!(relays);
