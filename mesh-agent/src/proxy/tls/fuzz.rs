//! What arrives on a TLS connection: while the hands are shaken, from anybody, and after it, from whoever has a certificate.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs as provider},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};

use super::{
    established::{Established, Opened},
    record::{self, Content, HEADER, MOST_WIRE},
    session::Session,
};

/// Flights that a handshake may take: two are usual, four with a retry.
const MOST_FLIGHTS: usize = 8;
/// Key updates in a row, beyond which the peer is up to no good.
const MOST_UPDATES: usize = 32;

type Configs = (Arc<ClientConfig>, Arc<ServerConfig>);

/// Of two ends that trust each other; made once, as a key is.
static CONFIGS: LazyLock<Option<Configs>> = LazyLock::new(|| configs().ok());

fn configs() -> Result<Configs, Error> {
    let fail = |_| Error::General("no key".into());
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new()).map_err(fail)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.as_ref().to_vec()));
    let key = provider::sign::any_ecdsa_type(&key)?;
    let certificate = CertificateDer::from(b"a certificate that nobody reads".to_vec());
    let resolver = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    // The cheapest: it is not what is tried here.
    let crypto =
        Arc::new(CryptoProvider { kx_groups: vec![provider::kx_group::X25519], ..provider::default_provider() });
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&crypto))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    let mut server = ServerConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    server.enable_secret_extraction = true;
    server.send_tls13_tickets = 0;
    Ok((Arc::new(client), Arc::new(server)))
}

/// Takes anybody for the server.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// One end of a handshake, and what has arrived for it and is not complete.
struct End {
    session: Session,
    incoming: Vec<u8>,
    is_handshaking: bool,
}

impl End {
    /// The client's and the server's.
    fn both() -> Option<(Self, Self)> {
        let (client, server) = CONFIGS.as_ref()?;
        let name = ServerName::try_from("peer.mesh").ok()?;
        let end = |session| Self { session, incoming: Vec::new(), is_handshaking: true };
        let client = Session::client(Arc::clone(client), name, &[]).ok()?;
        Some((end(client), end(Session::server(Arc::clone(server)).ok()?)))
    }

    /// Takes in what has arrived; returns what is to be sent.
    fn go_on(&mut self) -> Result<Vec<u8>, Error> {
        let mut outgoing = Vec::new();
        let progress = self.session.take_in(&mut self.incoming, &mut outgoing, &mut |_| {})?;
        assert!(progress.consumed <= self.incoming.len());
        self.incoming.drain(..progress.consumed);
        self.is_handshaking = progress.is_handshaking;
        Ok(outgoing)
    }
}

/// Lets two ends shake hands; `between` may change what is on its way.
fn shake_hands(mut between: impl FnMut(&mut Vec<u8>)) -> Result<Option<(Established, Established)>, Error> {
    let Some((mut client, mut server)) = End::both() else { return Ok(None) };
    for _ in 0..MOST_FLIGHTS {
        let mut flight = client.go_on()?;
        between(&mut flight);
        server.incoming.extend_from_slice(&flight);
        let mut flight = server.go_on()?;
        between(&mut flight);
        client.incoming.extend_from_slice(&flight);
        if !client.is_handshaking && !server.is_handshaking {
            return Ok(Some((client.session.establish()?, server.session.establish()?)));
        }
    }
    Ok(None)
}

/// A handshake, by the first byte: bytes for a server or a client that come in pieces of the length in the second one, or a
/// handshake of which bytes are changed, each by two bytes for its place and one for how.
pub fn tls_handshake(input: &[u8]) {
    let Some(([how, size], bytes)) = input.split_first_chunk() else { return };
    if how % 4 < 2 {
        let Some((client, server)) = End::both() else { return };
        let mut end = if how % 4 == 0 { server } else { client };
        let mut result = end.go_on();
        for piece in bytes.chunks(usize::from(*size).max(1) * 8) {
            if result.is_err() || !end.is_handshaking {
                return;
            }
            end.incoming.extend_from_slice(piece);
            result = end.go_on();
        }
        return;
    }
    let mut edits = bytes.chunks_exact(3);
    let mut offset = 0;
    let _ = shake_hands(|flight| {
        for edit in edits.by_ref() {
            let [high, low, how] = *edit else { return };
            let place = usize::from(u16::from_be_bytes([high, low]));
            let Some(byte) = flight.get_mut(place) else { break };
            *byte ^= how;
            offset += 1;
        }
    });
}

/// Records of a peer who has the keys and says what he likes. The first byte says who he is, then each step begins with one.
pub fn tls_records(input: &[u8]) {
    let _ = record::length(input).map(|length| length.map(assert_length));
    let Some((who, mut steps)) = input.split_first() else { return };
    let Ok(Some((client, server))) = shake_hands(|_| {}) else { return };
    let (peer, own) = if who % 2 == 0 { (client, server) } else { (server, client) };
    let mut talk = Talk { peer, own, has_spoken_otherwise: false, updates: 0 };
    while let Some((step, rest)) = steps.split_first() {
        let Some(rest) = talk.step(*step, rest) else { return };
        steps = rest;
    }
}

fn assert_length(length: usize) {
    assert!((HEADER + 17..=MOST_WIRE).contains(&length), "{length}");
}

/// A connection after the handshake.
struct Talk {
    peer: Established,
    own: Established,
    /// The peer has sent messages of the handshake: what comes of the next record is not known here.
    has_spoken_otherwise: bool,
    /// Key updates without data between them.
    updates: usize,
}

impl Talk {
    /// Makes one step and returns the rest of the input; `None` when the connection is over.
    fn step<'a>(&mut self, step: u8, rest: &'a [u8]) -> Option<&'a [u8]> {
        let mut record = vec![0; MOST_WIRE];
        match step % 8 {
            kind @ 0..=3 => {
                let (payload, rest) = payload(rest)?;
                let content = match kind {
                    0 | 1 => Content::Data,
                    2 => Content::Handshake,
                    _ => Content::Alert,
                };
                let length = self.peer.say(content, payload, &mut record)?;
                self.hear(content, payload, record.get_mut(..length)?)?;
                Some(rest)
            }
            4 => {
                let length = self.peer.update(&mut record).ok()?;
                let opened = self.own.open(record.get_mut(..length)?);
                self.updates += 1;
                let may_be_refused = self.has_spoken_otherwise || self.updates > MOST_UPDATES;
                assert!(opened == Ok(Opened::Done) || may_be_refused, "{opened:?}");
                // One may have ended up within another message.
                let may_be_taken = self.has_spoken_otherwise || self.updates <= MOST_UPDATES;
                assert!(opened.is_err() || may_be_taken, "{} updates in a row", self.updates);
                opened.ok().map(|_| rest)
            }
            5 => {
                let (payload, _) = payload(rest)?;
                let mut record = payload.to_vec();
                assert!(self.own.open(&mut record).is_err(), "nobody has sealed it");
                None
            }
            6 => {
                if self.own.owes_update() {
                    let length = self.own.update(&mut record).ok()?;
                    assert_eq!(self.peer.open(record.get_mut(..length)?), Ok(Opened::Done));
                }
                let (payload, rest) = payload(rest)?;
                let length = self.own.seal(&[payload], &mut record).ok()?;
                assert_eq!(record::length(&record), Ok(Some(length)));
                assert_eq!(self.peer.open(record.get_mut(..length)?), Ok(Opened::Data(payload.len())));
                assert_eq!(record.get(HEADER..HEADER + payload.len()), Some(payload));
                Some(rest)
            }
            _ => {
                let (payload, rest) = payload(rest)?;
                let length = self.peer.seal(&[payload], &mut record).ok()?;
                let place = usize::from(*rest.first()?) % length;
                *record.get_mut(place)? ^= 1 << (step >> 5);
                assert!(self.own.open(record.get_mut(..length)?).is_err(), "it was changed");
                None
            }
        }
    }

    /// The other end of a record of this content.
    fn hear(&mut self, content: Content, payload: &[u8], record: &mut [u8]) -> Option<()> {
        assert_eq!(record::length(record), Ok(Some(record.len())));
        let opened = self.own.open(record);
        match &opened {
            Ok(Opened::Data(length)) => {
                assert!(content == Content::Data && *length == payload.len());
                assert_eq!(record.get(HEADER..HEADER + length), Some(payload));
                self.updates = 0;
            }
            Ok(Opened::Done) => assert!(content != Content::Data, "data is lost"),
            Ok(Opened::End) => assert!(content == Content::Alert && payload.get(1) == Some(&0)),
            Err(_) => assert!(content != Content::Data || self.has_spoken_otherwise, "data is refused"),
        }
        self.has_spoken_otherwise |= content == Content::Handshake;
        matches!(opened, Ok(Opened::Data(_) | Opened::Done)).then_some(())
    }
}

/// What a step is about: a length, in two bytes, and so many bytes.
fn payload(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let ([high, low], rest) = input.split_first_chunk()?;
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(record::MOST_PLAIN);
    Some(rest.split_at(length.min(rest.len())))
}
