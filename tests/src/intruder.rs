//! Clients of an agent's port 15008 that are no agents.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use http::{Method, Request, StatusCode};
use rustls::{ClientConfig, pki_types::ServerName};

use crate::{
    pki::{Authority, Own},
    socket,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client hello of TLS 1.2 (RFC 5246, 7.4.1.2) with a suite that servers of that time had.
pub fn hello_of_tls_1_2() -> Vec<u8> {
    // Version, random, no session, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, no compression.
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    // secp256r1; uncompressed points; ecdsa_secp256r1_sha256.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 4, 0, 2, 4, 3];
    body.extend([0, extensions.len() as u8]);
    body.extend(extensions);
    let mut record = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    record.extend(body);
    record
}

/// TLS of somebody with this certificate, or with none, who trusts the authority and does not care who answers.
pub fn config(authority: &Authority, own: Option<Own>) -> ClientConfig {
    let mut config = authority.client(own);
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Asks for a tunnel to `authority` on a TCP connection that was just opened. Returns the answer's status and its reason.
///
/// # Errors
/// There is no answer: the handshake failed or the connection was ended.
pub fn ask(
    stream: TcpStream,
    config: ClientConfig,
    method: Method,
    authority: &str,
    padding: usize,
) -> io::Result<(StatusCode, Option<String>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, request(stream, config, method, authority, padding)).await? })
}

async fn request(
    stream: TcpStream,
    config: ClientConfig,
    method: Method,
    authority: &str,
    padding: usize,
) -> io::Result<(StatusCode, Option<String>)> {
    stream.set_nonblocking(true)?;
    let stream = tokio::net::TcpStream::from_std(stream)?;
    let name = ServerName::try_from("anybody.example").map_err(io::Error::other)?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let (send, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
    let connection = tokio::spawn(connection);
    let uri = if method == Method::CONNECT { authority.to_owned() } else { format!("https://{authority}/") };
    let mut request = Request::builder().method(method).uri(uri);
    if padding > 0 {
        request = request.header("x-padding", "x".repeat(padding));
    }
    let request = request.body(()).map_err(io::Error::other)?;
    let mut send = send.ready().await.map_err(io::Error::other)?;
    let (response, _body) = send.send_request(request, false).map_err(io::Error::other)?;
    let response = response.await.map_err(io::Error::other)?;
    let reason = response.headers().get("mesh-agent-reason").and_then(|reason| reason.to_str().ok()).map(str::to_owned);
    connection.abort();
    Ok((response.status(), reason))
}

/// Opens TCP connections and says nothing on them.
///
/// # Errors
/// What connect() says.
pub fn half_open(to: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
    (0..count).map(|_| socket::connect_here(to)).collect()
}
