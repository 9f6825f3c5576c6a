//! The relay over real sockets, in a network namespace of its own.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use mesh_agent::{
    model::{ObjectName, Reason},
    net::connect::reset_on_close,
    proxy::{Error, relay},
    telemetry::{Connection, Direction, PodCounters, WorkerCounters},
};
use mesh_tests::{sandbox::isolated, socket};

/// A relay on a thread, and the outer ends of its two connections.
struct Relayed {
    client: TcpStream,
    server: TcpStream,
    relay: JoinHandle<Result<(), Reason>>,
    counters: Arc<PodCounters>,
}

/// Two ends of a connection.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let other = listener.accept().unwrap().0;
    (socket::patient(one).unwrap(), socket::patient(other).unwrap())
}

fn record(counters: &Arc<PodCounters>) -> Connection {
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let name = ObjectName::new("shop", "client");
    Connection::open(Arc::clone(counters), Arc::new(WorkerCounters::new(0)), name, None, Direction::Outbound, peer)
}

/// Relays between two sockets as a worker does, with RST where it ends in an error.
async fn serve(downstream: TcpStream, upstream: TcpStream, mut record: Connection) -> Result<(), Error> {
    downstream.set_nonblocking(true).unwrap();
    upstream.set_nonblocking(true).unwrap();
    let downstream = tokio::net::TcpStream::from_std(downstream).unwrap();
    let upstream = tokio::net::TcpStream::from_std(upstream).unwrap();
    let result = relay::run(&downstream, &upstream, &mut record).await;
    if result.is_err() {
        reset_on_close(&downstream);
        reset_on_close(&upstream);
    }
    record.finish(result.as_ref().err().map_or(Reason::Ok, Error::reason));
    result
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn relayed() -> Relayed {
    let ((client, downstream), (server, upstream)) = (pair(), pair());
    let counters = Arc::<PodCounters>::default();
    let record_of = Arc::clone(&counters);
    let relay = std::thread::spawn(move || {
        let record = record(&record_of);
        runtime().block_on(serve(downstream, upstream, record)).map_err(|error| error.reason())
    });
    Relayed { client, server, relay, counters }
}

/// `length` bytes that no shift or repetition of leaves the same.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn each_side_may_end_first_and_still_receive() {
    isolated("each_side_may_end_first_and_still_receive", || {
        for client_first in [true, false] {
            let Relayed { client, server, relay, counters } = relayed();
            let (mut first, mut last) = if client_first { (client, server) } else { (server, client) };
            first.write_all(b"question").unwrap();
            first.shutdown(Shutdown::Write).unwrap();
            let mut text = String::new();
            last.read_to_string(&mut text).unwrap();
            assert_eq!(text, "question");
            last.write_all(b"answer").unwrap();
            drop(last);
            text.clear();
            first.read_to_string(&mut text).unwrap();
            assert_eq!(text, "answer");
            assert_eq!(relay.join().unwrap(), Ok(()));
            let (up, down) = (counters.outbound.to_upstream.value(), counters.outbound.to_downstream.value());
            assert_eq!((up, down), if client_first { (8, 6) } else { (6, 8) });
        }
    });
}

#[test]
fn a_reset_goes_through_and_is_blamed_on_its_side() {
    isolated("a_reset_goes_through_and_is_blamed_on_its_side", || {
        for of_client in [true, false] {
            let Relayed { client, server, relay, .. } = relayed();
            let (resetting, mut other) = if of_client { (client, server) } else { (server, client) };
            socket::reset(resetting);
            assert_eq!(other.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            let blamed = if of_client { Reason::DownstreamReset } else { Reason::UpstreamReset };
            assert_eq!(relay.join().unwrap(), Err(blamed));
        }
    });
}

#[test]
fn a_reset_goes_through_while_the_other_side_stalls() {
    isolated("a_reset_goes_through_while_the_other_side_stalls", || {
        let Relayed { client, server, relay, .. } = relayed();
        fill(&client);
        socket::reset(client);
        assert_eq!(relay.join().unwrap(), Err(Reason::DownstreamReset));
        // What was on its way may be lost with it; an end it is not.
        let mut server = server;
        let error = server.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
}

/// Writes until nothing more is taken; returns how much was.
fn fill(stream: &TcpStream) -> usize {
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let block = vec![7; 1 << 20];
    let mut sent = 0;
    loop {
        match (&*stream).write(&block) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return sent,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn large_flows_arrive_byte_for_byte_both_ways_at_once() {
    isolated("large_flows_arrive_byte_for_byte_both_ways_at_once", || {
        let data = Arc::new(noise(32 << 20));
        let Relayed { client, server, relay, counters } = relayed();
        let ends = [client, server].map(|mut stream| {
            let data = Arc::clone(&data);
            std::thread::spawn(move || {
                let mut writer = stream.try_clone().unwrap();
                let sent = Arc::clone(&data);
                let writing = std::thread::spawn(move || {
                    // Uneven pieces: some are copied, some are spliced.
                    let mut rest = sent.as_slice();
                    for size in [1, 100, 70_000, 3, 1 << 20, 1500].into_iter().cycle() {
                        if rest.is_empty() {
                            break;
                        }
                        let (piece, left) = rest.split_at(size.min(rest.len()));
                        writer.write_all(piece).unwrap();
                        rest = left;
                    }
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                let mut got = Vec::with_capacity(data.len());
                stream.read_to_end(&mut got).unwrap();
                writing.join().unwrap();
                assert!(got == *data, "{} bytes of {}", got.len(), data.len());
            })
        });
        for end in ends {
            end.join().unwrap();
        }
        assert_eq!(relay.join().unwrap(), Ok(()));
        let (up, down) = (counters.outbound.to_upstream.value(), counters.outbound.to_downstream.value());
        assert_eq!((up as usize, down as usize), (data.len(), data.len()));
    });
}

#[test]
fn a_reader_that_stalls_stalls_its_sender_and_nobody_else() {
    isolated("a_reader_that_stalls_stalls_its_sender_and_nobody_else", || {
        let Relayed { mut client, mut server, relay, .. } = relayed();
        let sent = fill(&client);
        // Socket buffers and one pipe, not what the sender has.
        assert!(sent < 64 << 20, "{sent} bytes were taken of a connection that nobody reads");
        // The other direction is as alive as ever.
        server.write_all(b"still here").unwrap();
        let mut text = [0; 10];
        client.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"still here");
        client.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), sent);
        drop(server);
        assert_eq!(client.read(&mut text).unwrap(), 0);
        assert_eq!(relay.join().unwrap(), Ok(()));
    });
}

#[test]
fn a_thousand_connections_at_once() {
    isolated("a_thousand_connections_at_once", || {
        const COUNT: usize = 1000;
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .and_then(|(_, hard)| {
                nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard)
            })
            .unwrap();
        let counters = Arc::<PodCounters>::default();
        let (hand_over, handed) = mpsc::channel();
        let own = Arc::clone(&counters);
        let relay = std::thread::spawn(move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime(), async {
                let mut all = tokio::task::JoinSet::new();
                for (downstream, upstream) in handed {
                    all.spawn_local(serve(downstream, upstream, record(&own)));
                }
                while let Some(end) = all.join_next().await {
                    end.unwrap().unwrap();
                }
            });
        });
        let mut ends = Vec::new();
        for _ in 0..COUNT {
            let ((client, downstream), (server, upstream)) = (pair(), pair());
            hand_over.send((downstream, upstream)).unwrap();
            ends.push((client, server));
        }
        drop(hand_over);
        for (n, (client, _)) in ends.iter_mut().enumerate() {
            client.write_all(&(n as u32).to_be_bytes()).unwrap();
        }
        for (n, (_, server)) in ends.iter_mut().enumerate() {
            let mut got = [0; 4];
            server.read_exact(&mut got).unwrap();
            assert_eq!(u32::from_be_bytes(got), n as u32, "each reaches its own server");
            server.write_all(&got).unwrap();
        }
        for (n, (mut client, server)) in ends.into_iter().enumerate() {
            let mut got = [0; 4];
            client.read_exact(&mut got).unwrap();
            assert_eq!(u32::from_be_bytes(got), n as u32);
            drop((client, server));
        }
        relay.join().expect("all have ended well");
        assert_eq!((counters.outbound.closed.value(), counters.outbound.failed.value()), (COUNT as u64, 0));
    });
}
