//! Who calls, by a service account's token: the API server is asked (TokenReview), and the answer kept for a moment.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::{Api, Client, api::PostParams};
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{Options, Pods};
use crate::{
    ca::server::{Authenticating, Authenticator, Caller, Credentials, workload},
    identity::Refusal,
    kubernetes::why,
    model::{Identity, Reason},
};

/// How long an answer is kept at most: this much longer than its pod, a token is good.
const KEPT: Duration = Duration::from_mins(1);
/// How long a refusal is kept: the token may be replaced, the API server come back.
const REFUSED: Duration = Duration::from_secs(1);
/// How long an answer may take.
const REVIEW: Duration = Duration::from_secs(5);
/// Tokens that are known at once: those of all nodes, and some.
const MOST: usize = 16_384;
/// Questions to the API server at once.
const AT_ONCE: usize = 16;

const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Asks the API server who calls. Workloads may show a certificate instead of a token.
pub struct Reviews {
    api: Api<TokenReview>,
    audience: String,
    agent: (String, String),
    trust_domain: Arc<str>,
    pods: Arc<Pods>,
    known: Mutex<HashMap<[u8; 32], Arc<Entry>>>,
    asking: Semaphore,
}

/// What is known of a token, and until when. Whoever holds the lock asks for all others.
type Entry = tokio::sync::Mutex<Option<(Instant, Result<Caller, Refusal>)>>;

/// What is read of a token before anybody is asked about it.
#[derive(Debug, Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audience,
    #[serde(default)]
    exp: u64,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// What the API server says about a caller.
#[derive(Debug, PartialEq, Eq)]
struct Account<'a> {
    namespace: &'a str,
    name: &'a str,
    node: Option<&'a str>,
    pod_uid: &'a str,
}

impl Reviews {
    pub(super) fn new(client: Client, options: &Options, pods: Arc<Pods>) -> Self {
        Self {
            api: Api::all(client),
            audience: options.audience.clone(),
            agent: options.agent.clone(),
            trust_domain: options.trust_domain.as_str().into(),
            pods,
            known: Mutex::default(),
            asking: Semaphore::new(AT_ONCE),
        }
    }

    async fn by_token(&self, token: &str) -> Result<Caller, Refusal> {
        let claims = read(token, &self.audience)?;
        let entry = self.entry(token);
        let mut known = entry.lock().await;
        if let Some((until, answer)) = &*known
            && Instant::now() < *until
        {
            return answer.clone();
        }
        let answer = self.ask(token).await;
        let kept = if answer.is_ok() { left(&claims, SystemTime::now()).min(KEPT) } else { REFUSED };
        *known = Some((Instant::now() + kept, answer.clone()));
        answer
    }

    fn entry(&self, token: &str) -> Arc<Entry> {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            let now = Instant::now();
            known.retain(|_, entry| {
                // What is locked is being asked about.
                entry.try_lock().map_or(true, |entry| entry.as_ref().is_some_and(|(until, _)| now < *until))
            });
        }
        if known.len() >= MOST {
            known.clear();
        }
        Arc::clone(known.entry(hash).or_default())
    }

    async fn ask(&self, token: &str) -> Result<Caller, Refusal> {
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![self.audience.clone()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = {
            let _turn = self.asking.acquire().await;
            timeout(REVIEW, self.api.create(&PostParams::default(), &review)).await
        };
        let not_now = |why: String| Refusal {
            reason: Reason::CaNotReady,
            message: format!("the API server does not say whose token it is: {why}"),
            is_transient: true,
        };
        let review = answer
            .unwrap_or_else(|_| Err(kube::Error::Service("no answer in time".into())))
            .map_err(|error| not_now(why(&error)))?;
        let status = review.status.ok_or_else(|| not_now("the review has no status".to_owned()))?;
        let user = authenticated(&status, &self.audience)?;
        let account = account(user)?;
        let identity = Identity {
            trust_domain: Arc::clone(&self.trust_domain),
            namespace: account.namespace.into(),
            service_account: account.name.into(),
        };
        if (account.namespace, account.name) != (&*self.agent.0, &*self.agent.1) {
            return Ok(Caller::Workload(identity));
        }
        // Servers before 1.30 do not say the node.
        let node = match account.node {
            Some(node) => Some(node.into()),
            None => self.pods.node_of(account.pod_uid, account.namespace, account.name).await?,
        };
        node.map(Caller::Node).ok_or_else(|| unknown("the token's pod is on no node that is known"))
    }
}

impl Authenticator for Reviews {
    fn authenticate<'a>(&'a self, credentials: Credentials<'a>) -> Authenticating<'a> {
        Box::pin(async move {
            match credentials {
                Credentials { bearer: Some(token), .. } => self.by_token(token).await,
                Credentials { certificate: Some(certificate), .. } => by_certificate(certificate),
                Credentials { .. } => Err(unknown("there is neither a bearer token nor a client certificate")),
            }
        })
    }
}

fn by_certificate(certificate: &CertificateDer<'_>) -> Result<Caller, Refusal> {
    let read = workload(certificate, SystemTime::now());
    read.map(Caller::Workload).map_err(|why| unknown(&format!("the client certificate: {why}")))
}

fn unknown(message: &str) -> Refusal {
    Refusal { reason: Reason::CaUnauthenticated, message: message.to_owned(), is_transient: true }
}

/// What a token says of itself, which the API server has to confirm. Others than ours are not shown to it.
fn read(token: &str, audience: &str) -> Result<Claims, Refusal> {
    let payload = token.split('.').nth(1).and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok());
    let claims = payload.and_then(|payload| serde_json::from_slice::<Claims>(&payload).ok());
    let claims = claims.ok_or_else(|| unknown("the token is none of a service account"))?;
    let is_ours = match &claims.aud {
        Audience::One(one) => one == audience,
        Audience::Many(many) => many.iter().any(|one| one == audience),
    };
    if is_ours { Ok(claims) } else { Err(unknown(&format!("the token is not for the audience {audience}"))) }
}

/// How long it is valid yet.
fn left(claims: &Claims, now: SystemTime) -> Duration {
    let until = UNIX_EPOCH + Duration::from_secs(claims.exp.min(u64::from(u32::MAX)));
    until.duration_since(now).unwrap_or_default()
}

/// Whose token it is, if it is for the audience. A server that knows nothing of audiences names none.
fn authenticated<'a>(status: &'a TokenReviewStatus, audience: &str) -> Result<&'a UserInfo, Refusal> {
    if status.authenticated != Some(true) {
        let why = status.error.as_deref().filter(|error| !error.is_empty()).unwrap_or("it does not know it");
        return Err(unknown(&format!("the API server does not accept the token: {why}")));
    }
    if !status.audiences.iter().flatten().any(|one| one == audience) {
        return Err(unknown(&format!("the API server does not say that the token is for {audience}")));
    }
    status.user.as_ref().ok_or_else(|| unknown("the API server does not say whose token it is"))
}

/// The service account. Its token has to be a pod's: whoever may have tokens made has none otherwise.
fn account(user: &UserInfo) -> Result<Account<'_>, Refusal> {
    let name = user.username.as_deref().and_then(|name| name.strip_prefix(SERVICE_ACCOUNT));
    let Some((namespace, name)) = name.and_then(|name| name.split_once(':')) else {
        return Err(unknown("the token is none of a service account"));
    };
    let extra = |name: &str| {
        let values = user.extra.as_ref().and_then(|extra| extra.get(name));
        values.and_then(|values| values.first()).map(String::as_str).filter(|value| !value.is_empty())
    };
    let (Some(_), Some(pod_uid)) = (extra(POD_NAME), extra(POD_UID)) else {
        return Err(unknown("the token is not bound to a pod"));
    };
    Ok(Account { namespace, name, node: extra(NODE_NAME), pod_uid })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn only_tokens_for_the_audience_are_asked_about() {
        for good in [r#"{"aud":["x","ca"],"exp":1}"#, r#"{"aud":"ca"}"#] {
            read(&token(good), "ca").unwrap();
        }
        for bad in [&token(r#"{"aud":["x"]}"#), &token("{}"), &token("[]"), "", "a", "a.b.c", "...", "e30"] {
            assert_eq!(read(bad, "ca").unwrap_err().reason, Reason::CaUnauthenticated, "{bad}");
        }
    }

    #[test]
    fn an_answer_is_kept_no_longer_than_the_token() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let left = |exp| left(&Claims { aud: Audience::default(), exp }, now);
        assert_eq!(left(1_000_010), Duration::from_secs(10));
        assert_eq!(left(999_999), Duration::ZERO);
        assert!(left(u64::MAX) > KEPT);
    }

    #[test]
    fn a_server_that_ignores_audiences_vouches_for_nobody() {
        let user = Some(UserInfo::default());
        let status = TokenReviewStatus { authenticated: Some(true), user, ..TokenReviewStatus::default() };
        assert!(authenticated(&status, "ca").is_err());
        let audiences = Some(vec!["ca".to_owned()]);
        assert!(authenticated(&TokenReviewStatus { audiences: audiences.clone(), ..status.clone() }, "ca").is_ok());
        let refused = TokenReviewStatus { authenticated: None, audiences, ..status };
        assert!(authenticated(&refused, "ca").is_err());
    }

    #[test]
    fn tokens_without_a_pod_are_nobodys() {
        let user = |name: &str, extra: &[(&str, &str)]| UserInfo {
            username: Some(name.to_owned()),
            extra: Some(extra.iter().map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()])).collect()),
            ..UserInfo::default()
        };
        let pod = [(POD_NAME, "p"), (POD_UID, "u"), (NODE_NAME, "n1")];
        let good = user("system:serviceaccount:mesh-system:mesh-agent", &pod);
        let expected = Account { namespace: "mesh-system", name: "mesh-agent", node: Some("n1"), pod_uid: "u" };
        assert_eq!(account(&good), Ok(expected));
        let old = user("system:serviceaccount:mesh-system:mesh-agent", &pod[..2]);
        assert_eq!(account(&old).unwrap().node, None);
        for (name, extra) in [
            ("system:serviceaccount:mesh-system:mesh-agent", &pod[2..]),
            ("system:serviceaccount:mesh-system:mesh-agent", &[]),
            ("system:node:n1", &pod),
            ("admin", &pod),
        ] {
            assert_eq!(account(&user(name, extra)).unwrap_err().reason, Reason::CaUnauthenticated, "{name}");
        }
        assert!(account(&UserInfo { extra: Some(BTreeMap::new()), ..UserInfo::default() }).is_err());
    }
}
