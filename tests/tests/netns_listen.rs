//! The agent's listeners and namespaces, for real.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use mesh_agent::net::{
    connect,
    listen::{limbo, listen},
    netns::{self, Netns},
};
use mesh_tests::{sandbox::isolated, wait::PATIENCE};

const KEEPALIVE: Duration = Duration::from_mins(1);

#[test]
fn a_listener_takes_both_families_on_its_port() {
    isolated("a_listener_takes_both_families_on_its_port", || {
        let listener = listen(15001, KEEPALIVE).unwrap();
        assert_eq!(listener.local_addr().unwrap().port(), 15001);
        listener.set_nonblocking(false).unwrap();
        for address in [SocketAddr::from((Ipv4Addr::LOCALHOST, 15001)), (Ipv6Addr::LOCALHOST, 15001).into()] {
            let client = TcpStream::connect(address).unwrap();
            let (accepted, peer) = listener.accept().unwrap();
            assert_eq!(peer.port(), client.local_addr().unwrap().port());
            assert!(accepted.nodelay().unwrap(), "accepted sockets inherit it");
        }
    });
}

#[test]
fn several_workers_share_a_port() {
    isolated("several_workers_share_a_port", || {
        let all: Vec<_> = (0..4).map(|_| listen(15001, KEEPALIVE).unwrap()).collect();
        assert!(all.iter().all(|listener| listener.local_addr().unwrap().port() == 15001));
    });
}

#[test]
fn a_port_that_an_app_has_is_left_to_it() {
    isolated("a_port_that_an_app_has_is_left_to_it", || {
        for app in [SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15001)), (Ipv6Addr::UNSPECIFIED, 15001).into()] {
            let app = TcpListener::bind(app).unwrap();
            let listener = listen(15001, KEEPALIVE).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert!(port != 15001 && port != 0);
            TcpStream::connect((Ipv4Addr::LOCALHOST, 15001)).unwrap();
            assert!(app.accept().is_ok(), "the app still gets what is its own");
        }
    });
}

#[test]
fn a_thread_moves_between_namespaces_and_leaves_the_others_where_they_are() {
    isolated("a_thread_moves_between_namespaces_and_leaves_the_others_where_they_are", || {
        let own = netns::cookie().unwrap();
        // A thread that waits in a namespace of its own keeps it alive.
        let (tell, told) = std::sync::mpsc::channel();
        let (leave, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            tell.send((nix::unistd::gettid(), netns::cookie().unwrap())).unwrap();
            let _ = wait.recv();
        });
        let (thread, cookie) = told.recv().unwrap();
        assert_ne!(cookie, own);
        let path = format!("/proc/self/task/{thread}/ns/net");
        let namespace = Netns::open(Path::new(&path)).unwrap();
        assert_eq!(namespace.run(netns::cookie).unwrap(), cookie);
        assert_eq!(netns::cookie().unwrap(), own);
        drop(leave);
        other.join().unwrap();
        // The thread is gone; whoever has it open still gets there.
        assert_eq!(namespace.run(netns::cookie).unwrap(), cookie);
        assert!(!namespace.is_still_there());
    });
}

#[test]
fn connections_to_apps_come_from_all_over_loopback() {
    isolated("connections_to_apps_come_from_all_over_loopback", || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = listener.local_addr().unwrap();
        let namespace = Netns::open(Path::new("/proc/thread-self/ns/net")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _context = runtime.enter();
        for (random, source) in [(0x0000_0300_u32, "127.0.3.2"), (0xffff_ff00_u32 + 9, "127.0.255.9")] {
            let socket = connect::socket(&namespace, to.ip()).unwrap();
            connect::bind_loopback(&socket, random).unwrap();
            let connecting = connect::start(socket, to).unwrap();
            runtime.block_on(connecting.established(PATIENCE)).unwrap();
            assert_eq!(listener.accept().unwrap().1.ip().to_string(), source);
        }
    });
}

#[test]
fn limbo_neither_answers_nor_refuses() {
    isolated("limbo_neither_answers_nor_refuses", || {
        let silent = limbo().unwrap();
        let mut to = silent.local_addr().unwrap();
        to.set_ip(Ipv6Addr::LOCALHOST.into());
        for to in [to, SocketAddr::from((Ipv4Addr::LOCALHOST, to.port()))] {
            let error = TcpStream::connect_timeout(&to, Duration::from_millis(300)).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{to}");
        }
    });
}
