//! When apps that do not read hold all that a connection between two agents may, new connections go by another one. No
//! privileges needed.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{ErrorKind, Write},
    net::TcpListener,
    sync::{Mutex, mpsc},
    time::Duration,
};

use mesh_tests::{Twin, app, eventually, socket};
use socket2::SockRef;

/// More readers than there is window for, however much is lent.
const STALLED: usize = 40;
/// The window of one of them.
const WINDOW: usize = 4 << 20;

#[test]
fn new_connections_go_by_another_way_when_one_is_full() {
    let twin = Twin::default();
    let (release, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let listener = TcpListener::bind((twin.at, 0)).unwrap();
    // Small segments, as on a network: on loopback the kernel would take a multiple of what this is about.
    SockRef::from(&listener).set_tcp_mss(1000).unwrap();
    SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
    let stuck = app::App::new(listener, move |_stream| {
        let _ = wait.lock().unwrap().recv();
        Ok(())
    });
    let echo = twin.app(app::echo);
    let stalled: Vec<_> = (0..STALLED)
        .map(|_| {
            let stream = twin.client.connect(stuck.address);
            stuck.seen();
            SockRef::from(&stream).set_send_buffer_size(64 * 1024).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        })
        .collect();
    let tunnels = || twin.server.pod.counters[0].inbound.tunnels.value();
    assert_eq!(tunnels(), 1);
    let block = vec![7; 256 * 1024];
    let (mut sent, mut stood) = (vec![0; STALLED], 0);
    eventually("new connections go on", || {
        for (stream, sent) in stalled.iter().zip(&mut sent) {
            match { stream }.write(&block) {
                Ok(written) => *sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
        // One that stands still shows that the connection is full, and is given up.
        let stream = twin.client.connect(echo.address);
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let goes_on = socket::exchange(&stream, "by another way").is_ok();
        stood += usize::from(!goes_on);
        (goes_on && tunnels() > 1).then_some(())
    });
    assert!(sent.iter().sum::<usize>() > STALLED * WINDOW / 2, "{sent:?}");
    assert!(STALLED + stood < 100, "the connection still had room: {stood}");
    assert!(tunnels() <= 5, "{}", tunnels());
    socket::exchange(&twin.client.connect(echo.address), "and so do others").unwrap();
    drop(release);
}
