//! One call, from its headers to its trailers.

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use rustls::pki_types::CertificateDer;

use super::{
    Shared,
    caller::{Credentials, authorize},
    limit::MAX_MESSAGE,
};
use crate::{
    ca::{
        grpc::{Code, Frames, Status, encode},
        pem,
        wire::{CREATE_CERTIFICATE, IMPERSONATED_IDENTITY, IstioCertificateRequest, IstioCertificateResponse},
    },
    identity::Refusal,
    model::Reason,
};

/// As much is logged of what a caller wrote, in characters: longer than any identity.
const MAX_LOGGED: usize = 600;

/// What is logged of a call.
#[derive(Default)]
struct Asked {
    caller: Option<String>,
    identity: Option<String>,
}

/// Serves a call. Returns whether the caller was known.
pub(super) async fn serve(
    shared: &Shared,
    peer: SocketAddr,
    certificate: Option<&CertificateDer<'_>>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    if request.method() != Method::POST || !content_type.starts_with(b"application/grpc") {
        let mut head = Response::new(());
        *head.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let _gone = respond.send_response(head, true);
        return false;
    }
    let mut asked = Asked::default();
    let limit = shared.limits.call;
    let answer = match tokio::time::timeout(limit, answer(shared, certificate, request, &mut asked)).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::new(Code::DeadlineExceeded, "the request did not arrive in time")),
    };
    let outcome = match &answer {
        Ok(_) => Ok(()),
        Err(status) => Err(status.reason.unwrap_or(Reason::CaBadRequest)),
    };
    shared.counts.count(outcome);
    let (caller, identity) = (asked.caller.as_deref().unwrap_or("-"), asked.identity.as_deref().unwrap_or("-"));
    if let (Err(status), Err(reason)) = (&answer, outcome) {
        tracing::warn!(%peer, caller, identity, %reason, message = %status.message, "refused");
    } else {
        tracing::info!(%peer, caller, identity, "signed");
    }
    // Fails if the caller has gone, and then nobody minds.
    let _gone = send(&mut respond, answer);
    asked.caller.is_some()
}

async fn answer(
    shared: &Shared,
    certificate: Option<&CertificateDer<'_>>,
    request: Request<RecvStream>,
    asked: &mut Asked,
) -> Result<Bytes, Status> {
    if request.uri().path() != CREATE_CERTIFICATE {
        return Err(Status::new(Code::Unimplemented, &format!("there is no method {}", request.uri().path())));
    }
    let refused = |refusal: Refusal| Status::from(&refusal);
    let (head, body) = request.into_parts();
    let credentials = Credentials { bearer: bearer(&head.headers), certificate };
    let caller = shared.authenticator.authenticate(credentials).await.map_err(refused)?;
    let caller_name = asked.caller.insert(caller.to_string());
    if !shared.rates.take(caller_name, &shared.limits, Instant::now()) {
        return Err(refused(Refusal {
            reason: Reason::CaLimited,
            message: format!("more than {} calls per second", shared.limits.rate),
            is_transient: true,
        }));
    }
    let request = receive(body).await?;
    let metadata = request.metadata.as_ref().and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY));
    let wanted = metadata.and_then(|value| value.string_value.as_deref());
    asked.identity = wanted.map(|wanted| wanted.chars().take(MAX_LOGGED).collect());
    let identity = authorize(&caller, wanted, &*shared.pods).await.map_err(refused)?;
    asked.identity = Some(identity.to_string());
    let validity = u64::try_from(request.validity_duration).ok().map(Duration::from_secs);
    let issued =
        shared.authority.sign(request.csr.as_bytes(), &identity, validity, SystemTime::now()).map_err(refused)?;
    let mut cert_chain: Vec<_> = issued.chain.iter().map(|der| pem::certificates(std::slice::from_ref(der))).collect();
    // The roots are the last element, together, as Istio has it.
    cert_chain.push(pem::certificates(&shared.authority.bundle().borrow().roots));
    Ok(encode(&IstioCertificateResponse { cert_chain }))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Reads the one message of a call.
async fn receive(mut body: RecvStream) -> Result<IstioCertificateRequest, Status> {
    let mut frames = Frames::new(MAX_MESSAGE);
    let mut message = None;
    while let Some(bytes) = body.data().await {
        let bytes = bytes.map_err(|error| Status::new(Code::Cancelled, &error.to_string()))?;
        frames.push(&bytes);
        let _closed = body.flow_control().release_capacity(bytes.len());
        match frames.take()? {
            Some(_) if message.is_some() => return Err(Status::new(Code::InvalidArgument, "more than one message")),
            Some(next) => message = Some(next),
            None => {}
        }
    }
    message.filter(|_| frames.is_empty()).ok_or_else(|| Status::new(Code::InvalidArgument, "the message was cut short"))
}

fn send(respond: &mut SendResponse<Bytes>, answer: Result<Bytes, Status>) -> Result<(), h2::Error> {
    let mut head = Response::new(());
    head.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    match answer {
        Ok(message) => {
            let mut body = respond.send_response(head, false)?;
            body.send_data(message, false)?;
            let mut trailers = HeaderMap::new();
            Status::new(Code::Ok, "").write(&mut trailers);
            body.send_trailers(trailers)
        }
        Err(status) => {
            status.write(head.headers_mut());
            respond.send_response(head, true).map(drop)
        }
    }
}
