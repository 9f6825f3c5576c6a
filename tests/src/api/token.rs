//! Service account tokens: signed JWTs (RFC 7519, RS256) with the claims of the real server, and their verification.

use std::{
    collections::{BTreeMap, HashMap},
    sync::OnceLock,
    time::{Duration, Instant},
};

use aws_lc_rs::{
    digest::{SHA256, digest},
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde_json::{Value, json};

use super::{State, rbac::User, store::Key, time};

/// Issuer, and the audience of the server itself.
pub const ISSUER: &str = "https://kubernetes.default.svc";

/// The server's key for tokens.
#[derive(Debug)]
pub(super) struct Signer {
    pair: KeyPair,
    id: String,
}

/// Successful verifications are remembered for a time, so that a token outlives what it is bound to for that long.
#[derive(Debug)]
pub(super) struct Cache {
    known: HashMap<(String, Vec<String>), (Instant, Verified)>,
    pub(super) keep: Duration,
}

/// A token that holds.
#[derive(Clone, Debug)]
pub(super) struct Verified {
    pub(super) user: User,
    /// Those of the audiences asked for that the token is for.
    pub(super) audiences: Vec<String>,
}

impl Signer {
    /// One for all servers of a process: a key takes a second to make.
    pub(super) fn shared() -> &'static Self {
        static SIGNER: OnceLock<Signer> = OnceLock::new();
        SIGNER.get_or_init(Self::new)
    }

    fn new() -> Self {
        let pair = KeyPair::generate(KeySize::Rsa2048).expect("an RSA key");
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("a public key has an encoding");
        let id = BASE64.encode(digest(&SHA256, public.as_ref()));
        Self { pair, id }
    }

    pub(super) fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": "RS256", "kid": self.id});
        let text = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
            .expect("a buffer of the modulus' length");
        format!("{text}.{}", BASE64.encode(signature))
    }

    /// The claims of a token that this server signed. The error is the real server's, empty where it gives none.
    fn claims(&self, token: &str) -> Result<Value, &'static str> {
        let (text, signature) = token.rsplit_once('.').ok_or("")?;
        let (header, payload) = text.split_once('.').ok_or("")?;
        let decode = |part: &str| BASE64.decode(part).map_err(|_| "");
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| "")?;
        let claims: Value = serde_json::from_slice(&decode(payload)?).map_err(|_| "")?;
        if claims["iss"] != ISSUER || header["alg"] != "RS256" {
            return Err("");
        }
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.pair.public_key().as_ref());
        key.verify(text.as_bytes(), &decode(signature)?)
            .map_err(|_| "go-jose/go-jose: error in cryptographic primitive")?;
        Ok(claims)
    }
}

impl Cache {
    pub(super) fn new(keep: Duration) -> Self {
        Self { known: HashMap::new(), keep }
    }

    pub(super) fn clear(&mut self) {
        self.known.clear();
    }
}

/// Verifies a token for any of `audiences`. The error is what a TokenReview shows.
pub(super) fn verify(state: &mut State, token: &str, audiences: &[String]) -> Result<Verified, String> {
    let key = (token.to_owned(), audiences.to_vec());
    let now = Instant::now();
    state.tokens.known.retain(|_, (until, _)| *until > now);
    if let Some((_, verified)) = state.tokens.known.get(&key) {
        return Ok(verified.clone());
    }
    let verified = check(state, token, audiences).map_err(|problem| match problem.as_str() {
        "" => "invalid bearer token".to_owned(),
        problem => format!("[invalid bearer token, {problem}]"),
    })?;
    let until = now + state.tokens.keep;
    state.tokens.known.insert(key, (until, verified.clone()));
    Ok(verified)
}

fn check(state: &State, token: &str, audiences: &[String]) -> Result<Verified, String> {
    let claims = state.signer.claims(token)?;
    let list =
        |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let own: Vec<String> = list(&claims["aud"]);
    let fitting: Vec<_> = audiences.iter().filter(|audience| own.contains(audience)).cloned().collect();
    if fitting.is_empty() {
        return Err(format!("token audiences {} is invalid for the target audiences {}", json!(own), json!(audiences)));
    }
    let now = time::seconds();
    if claims["exp"].as_i64().is_none_or(|until| until < now) {
        return Err("service account token has expired".to_owned());
    }
    if claims["nbf"].as_i64().is_some_and(|from| from > now + 10) {
        return Err("service account token is not valid yet".to_owned());
    }
    let private = &claims["kubernetes.io"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = text(&private["namespace"]);
    let there = |collection: &str, who: &Value| {
        let entry = state.store.get(collection, &Key::new(&*namespace, text(&who["name"])));
        entry.is_some_and(|entry| entry.value()["metadata"]["uid"] == who["uid"])
    };
    let bound = private.get("pod").is_none_or(|pod| there("pods.", pod));
    if !there("serviceaccounts.", &private["serviceaccount"]) || !bound {
        return Err("service account token has been invalidated".to_owned());
    }
    Ok(Verified { user: user(&claims), audiences: fitting })
}

/// Who the claims speak of.
fn user(claims: &Value) -> User {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let private = &claims["kubernetes.io"];
    let mut extra = BTreeMap::new();
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            extra.insert(format!("authentication.kubernetes.io/{name}"), vec![value]);
        }
    };
    add("credential-id", format!("JTI={}", text(&claims["jti"])));
    for what in ["node", "pod"] {
        add(&format!("{what}-name"), text(&private[what]["name"]));
        add(&format!("{what}-uid"), text(&private[what]["uid"]));
    }
    User {
        name: text(&claims["sub"]),
        uid: text(&private["serviceaccount"]["uid"]),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{}", text(&private["namespace"])),
            "system:authenticated".to_owned(),
        ],
        extra,
    }
}

/// The claims of a new token for a service account, bound to a pod or to nothing.
pub(super) fn claims(state: &State, account: &Value, pod: Option<&Value>, audiences: &[String], seconds: i64) -> Value {
    let named = |object: &Value| json!({"name": object["metadata"]["name"], "uid": object["metadata"]["uid"]});
    let namespace = account["metadata"]["namespace"].as_str().unwrap_or_default();
    let name = account["metadata"]["name"].as_str().unwrap_or_default();
    let now = time::seconds();
    let mut private = json!({"namespace": namespace, "serviceaccount": named(account)});
    if let Some(pod) = pod {
        private["pod"] = named(pod);
        if let Some(node) = pod["spec"]["nodeName"].as_str() {
            let entry = state.store.get("nodes.", &Key::new("", node));
            private["node"] = entry.map_or_else(|| json!({"name": node}), |entry| named(&entry.value()));
        }
    }
    json!({
        "aud": audiences, "exp": now + seconds, "iat": now, "nbf": now, "iss": ISSUER, "jti": super::uid(),
        "sub": format!("system:serviceaccount:{namespace}:{name}"), "kubernetes.io": private,
    })
}
