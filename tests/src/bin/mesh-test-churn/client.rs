//! One connection to the API server, one request at a time.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    version::TLS13,
};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where EndpointSlices are.
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1";

/// An administrator's connection.
pub(crate) struct Client {
    send: http1::SendRequest<Full<Bytes>>,
    host: String,
    bearer: String,
}

impl Client {
    /// As the files in the API server's folder say.
    ///
    /// # Errors
    /// They are not there, or nobody answers.
    pub(crate) async fn connect(directory: &Path) -> Result<Self> {
        let read =
            |name: &str| fs::read_to_string(directory.join(name)).with_context(|| format!("{name} in the folder"));
        // The test server writes JSON, which YAML is a superset of.
        let config: Value = serde_json::from_str(&read("kubeconfig")?)?;
        let word = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).context("an unknown kubeconfig");
        let host = word("/clusters/0/cluster/server")?.trim_start_matches("https://").to_owned();
        let bearer = format!("Bearer {}", word("/users/0/user/token")?);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(read("ca.crt")?.as_bytes()).context("ca.crt")?)?;
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(&host).await.with_context(|| host.clone())?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name).to_owned())?;
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
        let (send, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its errors are those of the requests on it.
        tokio::spawn(connection);
        Ok(Self { send, host, bearer })
    }

    /// All slices, as they can be written back: not of a certain version.
    ///
    /// # Errors
    /// The server refuses or is gone.
    pub(crate) async fn slices(&mut self) -> Result<Vec<Value>> {
        let list = self.request(Method::GET, &format!("{SLICES}/endpointslices"), Bytes::new()).await?;
        let mut list: Value = serde_json::from_slice(&list)?;
        let items = list.get_mut("items").and_then(Value::as_array_mut).context("a list without items")?;
        for slice in items.iter_mut().filter_map(Value::as_object_mut) {
            // In a list it goes without saying.
            slice.insert("apiVersion".to_owned(), "discovery.k8s.io/v1".into());
            slice.insert("kind".to_owned(), "EndpointSlice".into());
            slice
                .get_mut("metadata")
                .and_then(Value::as_object_mut)
                .and_then(|metadata| metadata.remove("resourceVersion"));
        }
        Ok(std::mem::take(items))
    }

    /// Replaces a slice.
    ///
    /// # Errors
    /// As [`Self::slices`].
    pub(crate) async fn replace(&mut self, path: &str, object: Bytes) -> Result<()> {
        self.request(Method::PUT, path, object).await.map(|_| ())
    }

    /// Makes a slice.
    ///
    /// # Errors
    /// As [`Self::slices`].
    pub(crate) async fn create(&mut self, namespace: &str, object: Bytes) -> Result<()> {
        let path = format!("{SLICES}/namespaces/{namespace}/endpointslices");
        self.request(Method::POST, &path, object).await.map(|_| ())
    }

    async fn request(&mut self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(header::AUTHORIZATION, &self.bearer)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        self.send.ready().await?;
        let answer = self.send.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{path}: {status} {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }
}

/// The path of a slice.
///
/// # Errors
/// It has no name.
pub(crate) fn path_of(slice: &Value) -> Result<String> {
    let word = |pointer: &str| slice.pointer(pointer).and_then(Value::as_str).context("a slice without a name");
    let (namespace, name) = (word("/metadata/namespace")?, word("/metadata/name")?);
    Ok(format!("{SLICES}/namespaces/{namespace}/endpointslices/{name}"))
}
