//! `pods/portforward` over a WebSocket (subprotocol `v4.channel.k8s.io`), as the real server hands it to the kubelet: two
//! channels per port, data and errors, each beginning with the port's number. The test says where a pod's port leads.

use std::{collections::HashMap, net::SocketAddr, sync::Mutex};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::{
    Response,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

use super::{body, body::Body, status::Failure};

const PROTOCOL: &str = "v4.channel.k8s.io";

/// Where ports of pods lead: by namespace, pod and port.
#[derive(Debug, Default)]
pub(super) struct Forwards(Mutex<HashMap<(String, String, u16), SocketAddr>>);

impl Forwards {
    pub(super) fn set(&self, namespace: &str, pod: &str, port: u16, address: Option<SocketAddr>) {
        let mut known = self.0.lock().expect("nobody panics with it");
        let key = (namespace.to_owned(), pod.to_owned(), port);
        match address {
            Some(address) => known.insert(key, address),
            None => known.remove(&key),
        };
    }

    fn find(&self, namespace: &str, pod: &str, port: u16) -> Option<SocketAddr> {
        self.0.lock().expect("nobody panics with it").get(&(namespace.to_owned(), pod.to_owned(), port)).copied()
    }
}

/// What is asked for.
pub(super) struct Wish<'a> {
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
    pub(super) port: Option<u16>,
    pub(super) headers: &'a hyper::HeaderMap,
}

/// Answers with a change of protocols, and forwards from then on.
pub(super) fn answer(forwards: &Forwards, wish: &Wish<'_>, upgrade: OnUpgrade) -> Result<Response<Body>, Failure> {
    let header = |name| wish.headers.get(name).and_then(|value: &hyper::header::HeaderValue| value.to_str().ok());
    let speaks = |text: &str| text.split(',').any(|own| own.trim() == PROTOCOL);
    let is_websocket = header(UPGRADE).is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket"));
    let Some(key) = header(SEC_WEBSOCKET_KEY).filter(|_| is_websocket) else {
        return Err(Failure::unsupported("portforward without a WebSocket"));
    };
    if !header(SEC_WEBSOCKET_PROTOCOL).is_some_and(speaks) {
        return Err(Failure::unsupported("portforward by another subprotocol"));
    }
    let port = wish.port.ok_or_else(|| Failure::bad_request("query parameter \"port\" is required".to_owned()))?;
    let address = forwards.find(wish.namespace, wish.pod, port);
    let refusal = format!("error forwarding port {port} to pod {}: nobody listens there", wish.pod);
    tokio::spawn(async move {
        if let Ok(stream) = upgrade.await {
            forward(TokioIo::new(stream), port, address, refusal).await;
        }
    });
    let response = Response::builder()
        .status(101)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
        .header(SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()));
    Ok(response.body(body::whole(Bytes::new())).expect("constant headers"))
}

fn frame(channel: u8, data: &[u8]) -> Message {
    Message::binary([&[channel], data].concat())
}

async fn forward(stream: TokioIo<hyper::upgrade::Upgraded>, port: u16, address: Option<SocketAddr>, refusal: String) {
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    for channel in [0, 1] {
        if socket.send(frame(channel, &port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    let connected = match address {
        Some(address) => TcpStream::connect(address).await.ok(),
        None => None,
    };
    let Some(mut pod) = connected else {
        let _ = socket.send(frame(1, refusal.as_bytes())).await;
        let _ = socket.close(None).await;
        return;
    };
    let mut buffer = vec![0; 16 * 1024];
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Binary(data))) if data.first() == Some(&0) => {
                    if pod.write_all(&data[1..]).await.is_err() {
                        break;
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
            read = pod.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    if socket.send(frame(0, &buffer[..length])).await.is_err() {
                        return;
                    }
                }
            },
        }
    }
    let _ = socket.close(None).await;
}
