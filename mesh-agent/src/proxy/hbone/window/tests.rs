use std::future::poll_fn;

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{Method, Request, Response};
use tokio::io::DuplexStream;

use super::*;
use crate::proxy::hbone::server;

const MIB: u32 = 1024 * 1024;

fn reserve(bytes: u32) -> &'static Reserve {
    Box::leak(Box::new(Reserve::new(bytes)))
}

fn streams(reserve: &'static Reserve) -> Arc<Streams> {
    Arc::new(Streams { readers: Readers::of(reserve), ..Streams::default() })
}

#[test]
fn each_stalled_reader_raises_the_window_while_there_is_enough() {
    for (stalled, window) in [(0, 16), (1, 20), (2, 24), (8, 48), (16, 80), (17, 80), (300, 80), (usize::MAX, 80)] {
        let mut loan = Loan::default();
        loan.follow(stalled, reserve(128 * MIB));
        assert_eq!(loan.window(), window * MIB, "{stalled}");
    }
}

#[test]
fn others_are_left_as_much() {
    assert_eq!(share(128, 0, 4), 4);
    assert_eq!(share(128, 0, 1000), 64);
    assert_eq!(share(64, 64, 1000), 0, "it has as much as is left");
    assert_eq!(share(64, 0, 1000), 32, "another has not");
    assert_eq!(share(64, 100, 1), 0);
    assert_eq!(share(0, 0, 1), 0);
}

#[test]
fn many_stalled_readers_of_many_connections_do_not_exceed_the_reserve() {
    let reserve = reserve(128 * MIB);
    let connections: Vec<_> = (0..30).map(|_| Readers::of(reserve)).collect();
    let mut total = 0;
    for round in 0..10 {
        for readers in &connections {
            for _ in 0..30 {
                readers.stall();
            }
            readers.follow(readers.stalled.load(Relaxed));
        }
        total = connections.iter().map(|readers| readers.loan().lent).sum();
        assert!(total <= 128 * MIB, "{total} in round {round}");
        assert!(connections.iter().all(|readers| readers.loan().window() <= 80 * MIB));
    }
    assert!(total > 120 * MIB, "it is used: {total}");
    drop(connections);
    assert_eq!(reserve.0.load(Relaxed), 128 * MIB, "all of it comes back");
}

#[test]
fn what_the_other_end_may_still_use_is_not_lent_to_others() {
    let reserve = reserve(128 * MIB);
    let free = || reserve.0.load(Relaxed) / MIB;
    let mut loan = Loan::default();
    loan.follow(8, reserve);
    assert_eq!(free(), 96);
    loan.follow(2, reserve);
    assert_eq!((loan.window(), free()), (24 * MIB, 96), "lowered, but it was told of more");
    loan.repay(10 << 20, reserve);
    assert_eq!((loan.window(), free()), (24 * MIB, 106));
    loan.follow(4, reserve);
    assert_eq!((loan.window(), free()), (32 * MIB, 106), "of what it still had");
    loan.follow(10, reserve);
    assert_eq!((loan.window(), free()), (56 * MIB, 88));
    loan.follow(0, reserve);
    loan.repay(usize::MAX, reserve);
    assert_eq!((loan.window(), free()), (16 * MIB, 128));
    loan.repay(usize::MAX, reserve);
    assert_eq!(free(), 128, "no more than was owed");
}

#[test]
fn a_connection_is_short_when_others_have_less_than_a_stream() {
    let full = reserve(0);
    let is_short = |stalled, reserve| {
        let mut loan = Loan::default();
        loan.follow(stalled, reserve);
        loan.is_short(stalled)
    };
    assert!(!is_short(3, full), "12 MiB of 16");
    assert!(is_short(4, full));
    assert!(!is_short(4, reserve(128 * MIB)));
    assert!(!is_short(19, reserve(128 * MIB)), "76 MiB of 80");
    assert!(is_short(20, reserve(128 * MIB)));
}

#[tokio::test(start_paused = true)]
async fn nobody_counts_while_nobody_stalls() {
    let streams = streams(reserve(128 * MIB));
    let mut watch = Watch::new(Arc::clone(&streams));
    let readers = &streams.readers;
    let mut quiet = async || tokio::time::timeout(Duration::from_mins(1), watch.window()).await.ok();
    assert_eq!(quiet().await, None);
    readers.stall();
    readers.stall();
    assert_eq!(quiet().await, Some(24 * MIB));
    readers.go_on();
    assert_eq!(quiet().await, Some(20 * MIB));
    assert_eq!(quiet().await, None, "as before");
    readers.go_on();
    assert_eq!(quiet().await, Some(16 * MIB));
    assert_eq!(quiet().await, None);
    assert!(!readers.is_watched.load(Relaxed));
    readers.stall();
    assert_eq!(quiet().await, Some(20 * MIB), "the next one is noticed");
}

/// What apps at the end of a connection do: those of `stalls` never read.
async fn serve(wire: DuplexStream, streams: Arc<Streams>) {
    let mut connection = server::builder().handshake::<_, Bytes>(wire).await.unwrap();
    let mut watch = Watch::new(Arc::clone(&streams));
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, mut respond))) = accepted else { return };
                let send = respond.send_response(Response::new(()), false).unwrap();
                let stalls = request.uri().authority().unwrap().host() == "stalls";
                tokio::spawn(app(stalls, request.into_body(), send, Arc::clone(&streams)));
            }
            window = watch.window() => connection.set_target_window_size(window),
        }
    }
}

async fn app(stalls: bool, mut body: RecvStream, mut send: SendStream<Bytes>, streams: Arc<Streams>) {
    if stalls {
        streams.readers.stall();
        let _ = poll_fn(|cx| send.poll_reset(cx)).await;
        streams.readers.go_on();
        streams.readers.released(body.flow_control().used_capacity());
        return;
    }
    while let Some(data) = body.data().await {
        let length = data.unwrap().len();
        body.flow_control().release_capacity(length).unwrap();
        streams.readers.released(length);
    }
    send.send_data(Bytes::new(), true).unwrap();
}

struct Tunnels(SendRequest<Bytes>);

impl Tunnels {
    async fn new(streams: &Arc<Streams>) -> Self {
        let (near, far) = tokio::io::duplex(256 * 1024);
        tokio::spawn(serve(far, Arc::clone(streams)));
        let (send, connection) = h2::client::handshake(near).await.unwrap();
        tokio::spawn(connection);
        Self(send)
    }

    /// Opens one and sends so many bytes, as they go; how many went is counted.
    async fn send(&self, to: &str, most: usize, went: &AtomicUsize) -> RecvStream {
        static ZEROS: [u8; 16 * 1024] = [0; 16 * 1024];
        let request = Request::builder().method(Method::CONNECT).uri(to).body(()).unwrap();
        let (response, mut send) = self.0.clone().ready().await.unwrap().send_request(request, false).unwrap();
        let mut sent = 0;
        while sent < most {
            send.reserve_capacity(ZEROS.len().min(most - sent));
            let capacity = poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap().min(most - sent);
            send.send_data(Bytes::from_static(&ZEROS[..capacity.min(ZEROS.len())]), false).unwrap();
            sent += capacity.min(ZEROS.len());
            went.fetch_add(capacity.min(ZEROS.len()), Relaxed);
        }
        send.send_data(Bytes::new(), true).unwrap();
        response.await.unwrap().into_body()
    }
}

/// So many tunnels to apps that do not read, each sent as much as goes.
fn stall(n: usize, tunnels: &Arc<Tunnels>, went: &Arc<AtomicUsize>) -> tokio::task::JoinSet<()> {
    (0..n)
        .map(|_| {
            let (tunnels, went) = (Arc::clone(tunnels), Arc::clone(went));
            async move { drop(tunnels.send("stalls:80", usize::MAX, &went).await) }
        })
        .collect()
}

/// The clock goes on only when nothing else does.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn hundreds_of_stalled_readers_hold_what_was_lent_and_no_more() {
    let reserve = reserve(32 * MIB);
    let (first, second) = (streams(reserve), streams(reserve));
    let (one, other) = (Arc::new(Tunnels::new(&first).await), Arc::new(Tunnels::new(&second).await));
    let (went, went_there) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let stalled = stall(150, &one, &went);
    settle().await;
    assert_eq!(went.load(Relaxed), 32 << 20, "the connection's own, and half of the reserve");
    assert!(first.is_crowded());
    let _stalled_there = stall(150, &other, &went_there);
    settle().await;
    assert_eq!((went.load(Relaxed), went_there.load(Relaxed)), (32 << 20, 24 << 20));

    // They are reset, and what nobody has read is gone.
    drop(stalled);
    settle().await;
    assert!(!first.is_crowded());
    let read = AtomicUsize::new(0);
    let mut answer = one.send("reads:80", 100 << 20, &read).await;
    assert!(answer.data().await.unwrap().unwrap().is_empty(), "all was read");
    settle().await;
    assert_eq!(went_there.load(Relaxed), 32 << 20, "what was lent is back, and the other one gets of it");
    assert_eq!(reserve.0.load(Relaxed), 16 * MIB);
}

#[tokio::test(start_paused = true)]
async fn who_reads_goes_on_beside_stalled_readers() {
    let streams = streams(reserve(128 * MIB));
    let (tunnels, went) = (Arc::new(Tunnels::new(&streams).await), Arc::new(AtomicUsize::new(0)));
    let _stalled = stall(8, &tunnels, &went);
    settle().await;
    assert_eq!(went.load(Relaxed), 32 << 20, "each has its window full");
    assert!(!streams.is_crowded());
    let read = AtomicUsize::new(0);
    let mut answer = tunnels.send("reads:80", 40 << 20, &read).await;
    assert!(answer.data().await.unwrap().unwrap().is_empty(), "all was read");
}
