//! What nodes send to the authority.

use std::sync::LazyLock;

use rcgen::{KeyPair, PublicKeyData, SigningKey};

use super::{csr as requests, grpc::Frames, wire};
use crate::model::{Identity, Reason};

/// Longest message in the test: as short as the bytes of a fuzzer.
const LIMIT: usize = 512;
/// Whose certificates are asked for, as the seeds have it.
const ASKED: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// Keeps signing, so that the fuzzer gets beyond the signature.
static KEY: LazyLock<Option<KeyPair>> = LazyLock::new(|| KeyPair::generate().ok());

/// A certificate signing request as it is, and one with these bytes for its attributes that is signed well.
pub fn csr(input: &[u8]) {
    read(input);
    if let Some(key) = KEY.as_ref()
        && let Some(signed) = signed(input, key)
    {
        read(&signed);
    }
}

fn read(bytes: &[u8]) {
    let Ok(identity) = ASKED.parse::<Identity>() else { return };
    match requests::read(bytes, &identity) {
        Ok(key) => {
            let good = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384];
            assert!(good.contains(&key.algorithm()));
            let point = key.der_bytes();
            // In PEM it is in other words.
            assert!(bytes.windows(point.len()).any(|window| window == point) || bytes.contains(&b'-'));
        }
        Err(refusal) => {
            assert!(!refusal.is_transient);
            assert!(matches!(refusal.reason, Reason::CaBadRequest | Reason::CaWrongIdentity), "{:?}", refusal.reason);
        }
    }
}

/// PKCS#10 (RFC 2986, 4) without a subject.
fn signed(attributes: &[u8], key: &KeyPair) -> Option<Vec<u8>> {
    let info = [&[2, 1, 0, 0x30, 0][..], &key.subject_public_key_info(), &tagged(0xa0, attributes)].concat();
    let info = tagged(0x30, &info);
    let signature = [&[0][..], &key.sign(&info).ok()?].concat();
    // ecdsa-with-SHA256.
    let algorithm = [0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    Some(tagged(0x30, &[&info[..], &algorithm, &tagged(3, &signature)].concat()))
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let [.., third, second, first] = content.len().to_be_bytes();
    [&[tag, 0x83, third, second, first][..], content].concat()
}

/// A stream of gRPC messages: however it is cut, the same messages come of it.
pub fn grpc(input: &[u8]) {
    let Some((size, bytes)) = input.split_first() else { return };
    let whole = messages(std::iter::once(bytes));
    let cut = messages(bytes.chunks(usize::from(*size).max(1)));
    assert_eq!(whole, cut);
}

/// The messages, and whether there was nothing wrong up to the end.
fn messages<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<wire::IstioCertificateRequest>, bool) {
    let mut frames = Frames::new(LIMIT);
    let mut messages = Vec::new();
    for piece in pieces {
        frames.push(piece);
        loop {
            match frames.take::<wire::IstioCertificateRequest>() {
                Ok(Some(message)) => {
                    assert!(message.csr.len() <= LIMIT);
                    messages.push(message);
                }
                Ok(None) => break,
                Err(_) => return (messages, false),
            }
        }
    }
    (messages, true)
}
