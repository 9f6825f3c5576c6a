//! Our records against those of rustls, over a real connection.

use std::{io, sync::Arc};

use proptest::prelude::*;
use rustls::{
    ClientConfig, ConnectionTrafficSecrets, HandshakeKind, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, ServerName},
    version::TLS13,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    record::{self, Content, Half, MOST_PLAIN, MOST_WIRE},
    session::Session,
    *,
};

const TIMEOUT: Duration = Duration::from_secs(20);
const NAME: &str = "peer.mesh";

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    server.enable_secret_extraction = true;
    (Arc::new(client), Arc::new(server))
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (called, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (called.unwrap(), accepted.unwrap().0)
}

fn name() -> ServerName<'static> {
    ServerName::try_from(NAME).unwrap()
}

/// We call rustls.
async fn as_client(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (TlsStream, Theirs) {
    let (called, accepted) = sockets().await;
    let session = Session::client(Arc::clone(client), name(), &[]).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(server));
    let (ours, theirs) =
        tokio::join!(handshake(called, session, TIMEOUT, Reason::TlsHandshake), acceptor.accept(accepted));
    (ours.unwrap(), theirs.unwrap().into())
}

/// rustls calls us.
async fn as_server(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (TlsStream, Theirs) {
    let (called, accepted) = sockets().await;
    let session = Session::server(Arc::clone(server)).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(client));
    let (ours, theirs) =
        tokio::join!(handshake(accepted, session, TIMEOUT, Reason::TlsHandshake), connector.connect(name(), called));
    (ours.unwrap(), theirs.unwrap().into())
}

type Theirs = tokio_rustls::TlsStream<TcpStream>;

async fn both_ways() -> Vec<(TlsStream, Theirs)> {
    let (client, server) = configs();
    vec![as_client(&client, &server).await, as_server(&client, &server).await]
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index * 7 + index / 251) as u8).collect()
}

/// Echoes `data` from the one to the other and back.
async fn exchange(ours: &mut TlsStream, theirs: &mut Theirs, data: &[u8]) {
    let mut received = vec![0; data.len()];
    let (sent, got) = tokio::join!(
        async {
            ours.write_all(data).await?;
            ours.flush().await
        },
        theirs.read_exact(&mut received)
    );
    sent.unwrap();
    got.unwrap();
    assert!(received == data, "{} bytes from us", data.len());
    received.fill(0);
    let (sent, got) = tokio::join!(
        async {
            theirs.write_all(data).await?;
            theirs.flush().await
        },
        ours.read_exact(&mut received)
    );
    sent.unwrap();
    got.unwrap();
    assert!(received == data, "{} bytes from them", data.len());
}

#[tokio::test]
async fn whatever_the_length_it_arrives_as_it_was() {
    for (mut ours, mut theirs) in both_ways().await {
        for count in [1, 9, 2047, 2048, MOST_PLAIN - 1, MOST_PLAIN, MOST_PLAIN + 1, 65_536, 65_545, 1_000_003] {
            exchange(&mut ours, &mut theirs, &bytes(count)).await;
        }
    }
}

#[tokio::test]
async fn pieces_arrive_in_their_order() {
    let data = bytes(200_000);
    for (mut ours, mut theirs) in both_ways().await {
        for lengths in
            [&[9, 65_527][..], &[1; 40], &[9, 3000, 9, 3000, 20_000], &[0, 5, 0, 2047, 2047, 2047], &[70_000, 9]]
        {
            let mut rest = data.as_slice();
            let mut pieces = Vec::new();
            for length in lengths {
                let (piece, after) = rest.split_at(*length);
                pieces.push(io::IoSlice::new(piece));
                rest = after;
            }
            let total: usize = lengths.iter().sum();
            let mut received = vec![0; total];
            let (mut sent, mut slices) = (0, pieces.as_mut_slice());
            let write = async {
                while sent < total {
                    let count = ours.write_vectored(slices).await.unwrap();
                    assert!(count > 0);
                    sent += count;
                    io::IoSlice::advance_slices(&mut slices, count);
                }
                ours.flush().await.unwrap();
            };
            let ((), got) = tokio::join!(write, theirs.read_exact(&mut received));
            got.unwrap();
            assert!(received == data[..total], "{lengths:?}");
        }
    }
}

#[tokio::test]
async fn other_keys_may_be_asked_for_at_any_time() {
    for (mut ours, mut theirs) in both_ways().await {
        for round in 1..5 {
            exchange(&mut ours, &mut theirs, &bytes(round * 30_000)).await;
            refresh(&mut theirs);
        }
        exchange(&mut ours, &mut theirs, b"after all of them").await;
    }
}

#[tokio::test]
async fn a_key_serves_no_more_records_than_it_may() {
    for (mut ours, mut theirs) in both_ways().await {
        ours.session.limit = 3;
        for round in 0..10 {
            exchange(&mut ours, &mut theirs, &bytes(40_000 + round)).await;
        }
    }
}

#[tokio::test]
async fn key_updates_without_end_are_refused() {
    for (mut ours, mut theirs) in both_ways().await {
        for _ in 0..33 {
            refresh(&mut theirs);
        }
        theirs.write_all(b"x").await.unwrap();
        theirs.flush().await.unwrap();
        let error = ours.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
}

/// Other keys for what they send, with the request that we do the same.
fn refresh(theirs: &mut Theirs) {
    match theirs {
        Theirs::Client(theirs) => theirs.get_mut().1.refresh_traffic_keys().unwrap(),
        Theirs::Server(theirs) => theirs.get_mut().1.refresh_traffic_keys().unwrap(),
    }
}

/// The peer's socket, and what it seals with.
fn take_apart(theirs: Theirs) -> (std::net::TcpStream, Half) {
    let (socket, secrets) = match theirs {
        Theirs::Client(stream) => {
            let (socket, connection) = stream.into_inner();
            (socket, connection.dangerous_extract_secrets().unwrap())
        }
        Theirs::Server(stream) => {
            let (socket, connection) = stream.into_inner();
            (socket, connection.dangerous_extract_secrets().unwrap())
        }
    };
    let socket = socket.into_std().unwrap();
    socket.set_nonblocking(false).unwrap();
    (socket, Half::new(secrets.tx).unwrap())
}

#[tokio::test]
async fn goodbye_is_an_end_and_silence_is_none() {
    for (mut ours, mut theirs) in both_ways().await {
        theirs.write_all(b"last words").await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut all = Vec::new();
        ours.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"last words");
        // The other direction is still open.
        ours.write_all(b"and mine").await.unwrap();
        ours.shutdown().await.unwrap();
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"and mine");
        assert!(ours.write_all(b"more").await.is_err());
    }
    for (mut ours, theirs) in both_ways().await {
        drop(theirs);
        let error = ours.read_u8().await.unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset), "{error}");
    }
}

#[tokio::test]
async fn what_was_tampered_with_is_refused_and_the_peer_is_told() {
    for (mut ours, theirs) in both_ways().await {
        let (socket, mut send) = take_apart(theirs);
        let mut record = [0; 64];
        let length = send.seal(Content::Data, &[b"hello"], &mut record).unwrap();
        record[length - 1] ^= 1;
        io::Write::write_all(&mut &socket, &record[..length]).unwrap();
        let error = ours.read_u8().await.unwrap_err();
        assert_eq!(reason(&error), Some(Reason::TlsHandshake), "{error}");
        let mut answer = [0; 5];
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        loop {
            io::Read::read_exact(&mut &socket, &mut answer).unwrap();
            let length = record::length(&answer).unwrap().unwrap();
            let mut rest = vec![0; length - answer.len()];
            io::Read::read_exact(&mut &socket, &mut rest).unwrap();
            // An alert is the shortest record there is; tickets come before it.
            if length == 5 + 2 + 17 {
                break;
            }
        }
    }
}

#[tokio::test]
async fn tickets_are_kept_and_used() {
    let (client, server) = configs();
    let (mut ours, mut theirs) = as_client(&client, &server).await;
    exchange(&mut ours, &mut theirs, b"tickets come with it").await;
    let (mut ours, mut theirs) = as_client(&client, &server).await;
    exchange(&mut ours, &mut theirs, b"again").await;
    let Theirs::Server(theirs) = &theirs else { unreachable!() };
    assert_eq!(theirs.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
}

fn half(sequence: u64) -> Half {
    let secrets = ConnectionTrafficSecrets::Aes256Gcm {
        key: rustls::crypto::cipher::AeadKey::from([7; 32]),
        iv: rustls::crypto::cipher::Iv::from([9; 12]),
    };
    Half::new((sequence, secrets)).unwrap()
}

proptest! {
    #[test]
    fn records_open_as_they_were_sealed(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..5),
        sequence in any::<u32>(),
    ) {
        let slices: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let mut wire = vec![0; MOST_WIRE];
        let length = half(sequence.into()).seal(Content::Data, &slices, &mut wire).unwrap();
        prop_assert_eq!(record::length(&wire).unwrap(), Some(length));
        let (content, plain) = { let mut other = half(sequence.into()); let (c, p) = other.open(&mut wire[..length]).unwrap(); (c, p.to_vec()) };
        prop_assert_eq!(content, Content::Data);
        prop_assert_eq!(plain, pieces.concat());
    }

    #[test]
    fn records_open_once_unchanged_and_in_their_place(
        data in prop::collection::vec(any::<u8>(), 0..200),
        flip in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let mut wire = vec![0; MOST_WIRE];
        let length = half(5).seal(Content::Data, &[&data], &mut wire).unwrap();
        wire.truncate(length);
        prop_assert!(half(6).open(&mut wire.clone()).is_err(), "in another's place");
        let mut changed = wire.clone();
        changed[flip.index(length)] ^= 1 << bit;
        prop_assert!(half(5).open(&mut changed).is_err(), "changed");
        let mut receiver = half(5);
        prop_assert!(receiver.open(&mut wire.clone()).is_ok());
        prop_assert!(receiver.open(&mut wire).is_err(), "replayed");
    }

    #[test]
    fn lengths_are_within_what_may_come(bytes in prop::collection::vec(any::<u8>(), 0..16)) {
        if let Ok(Some(length)) = record::length(&bytes) {
            prop_assert!((22..=MOST_WIRE).contains(&length));
        }
    }
}
