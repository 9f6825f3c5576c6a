//! Requests: an answer as a whole, or as lines while they come.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::{Request, Response, header::RETRY_AFTER};
use http_body_util::{BodyExt, Limited};
use kube::{Client, client::Body};
use tokio::time::timeout;

use super::{
    failure::{Failure, Refusal},
    trim::{self, Keep},
};
use crate::kubernetes::causes;

/// How long the server may take to begin an answer, and to go on with one that is not a watch without news.
const PATIENCE: Duration = Duration::from_mins(1);
/// Most bytes of a line: the largest object that a server stores is 3 MiB.
const LONGEST_LINE: usize = 16 << 20;
/// Most bytes of an answer that is read as a whole.
const LARGEST_PAGE: usize = 256 << 20;
/// Most bytes of an error.
const LARGEST_ERROR: usize = 64 << 10;

const STATUS: Keep =
    Keep::Fields(&[("code", Keep::All), ("reason", Keep::All), ("message", Keep::All), ("details", Keep::All)]);

/// Asks for a path; what is not 2xx is a failure.
async fn get(client: &Client, path: &str) -> Result<Response<Body>, Failure> {
    let request = Request::get(path).body(Body::empty()).map_err(|error| Failure::Malformed(error.to_string()))?;
    let response = timeout(PATIENCE, client.send(request)).await;
    let response = response.map_err(|_| silent())?.map_err(|error| unreachable(&error))?;
    if response.status().is_success() {
        return Ok(response);
    }
    let code = response.status().as_u16();
    let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = header.and_then(|seconds| seconds.parse().ok());
    let body = timeout(PATIENCE, Limited::new(response.into_body(), LARGEST_ERROR).collect()).await;
    let text = body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let refusal = match trim::read(&text, STATUS) {
        Ok(status) => Refusal::read(code, &status),
        Err(_) => Refusal { code, ..Refusal::default() },
    };
    Err(Failure::Refused(Refusal { retry_after, ..refusal }))
}

/// The whole answer, which is JSON.
pub(super) async fn whole(client: &Client, path: &str, keep: Keep) -> Result<crate::discovery::yaml::Node, Failure> {
    let mut body = get(client, path).await?.into_body();
    let mut text = BytesMut::new();
    while let Some(data) = next(&mut body, PATIENCE).await? {
        if text.len() + data.len() > LARGEST_PAGE {
            return Err(Failure::Malformed(format!("more than {LARGEST_PAGE} bytes")));
        }
        text.extend_from_slice(&data);
    }
    trim::read(&text, keep).map_err(|error| Failure::Malformed(error.to_string()))
}

/// An answer that comes by lines.
pub(super) struct Lines {
    body: Body,
    text: BytesMut,
    /// No line ends before here.
    searched: usize,
}

impl Lines {
    pub(super) async fn open(client: &Client, path: &str) -> Result<Self, Failure> {
        let body = get(client, path).await?.into_body();
        Ok(Self { body, text: BytesMut::new(), searched: 0 })
    }

    /// The next line; `None` at the end. Silence for longer than `patience` is a failure.
    pub(super) async fn next(&mut self, patience: Option<Duration>) -> Result<Option<BytesMut>, Failure> {
        loop {
            let unsearched = self.text.get(self.searched..).unwrap_or_default();
            if let Some(at) = unsearched.iter().position(|byte| *byte == b'\n') {
                let mut line = self.text.split_to(self.searched + at + 1);
                self.searched = 0;
                line.truncate(line.len() - 1);
                return Ok(Some(line));
            }
            self.searched = self.text.len();
            if self.text.len() > LONGEST_LINE {
                return Err(Failure::Malformed(format!("a line of more than {LONGEST_LINE} bytes")));
            }
            match next(&mut self.body, patience.unwrap_or(PATIENCE)).await? {
                Some(data) => self.text.extend_from_slice(&data),
                None if self.text.has_remaining() => return Err(Failure::Unreachable("cut off within a line".into())),
                None => return Ok(None),
            }
        }
    }
}

async fn next(body: &mut Body, patience: Duration) -> Result<Option<bytes::Bytes>, Failure> {
    loop {
        match timeout(patience, body.frame()).await {
            Err(_) => return Err(silent()),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(Failure::Unreachable(causes(&error))),
            // Trailers say nothing.
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

fn silent() -> Failure {
    Failure::Unreachable("the API server is silent".into())
}

fn unreachable(error: &kube::Error) -> Failure {
    match error {
        kube::Error::Auth(_) => Failure::Refused(Refusal { code: 401, message: causes(error), ..Refusal::default() }),
        _ => Failure::Unreachable(causes(error)),
    }
}
