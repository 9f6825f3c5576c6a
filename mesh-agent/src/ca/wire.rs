//! The messages on the wire, written by hand: there are few, and no protoc is needed to build the agent.
//!
//! - `istio.v1.auth` (istio/api, `security/v1alpha1/ca.proto`)
//! - the SPIFFE Workload API (`workload.proto` of spiffe/spiffe)
//! - `google.protobuf.Struct`, `google.rpc.Status` and `ErrorInfo`, as far as these use them

use std::collections::BTreeMap;

use prost::Message;

/// Path of the method that signs a request.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// Path of the method that delivers identities.
pub const FETCH_X509_SVID: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
/// Key in the metadata of a request: whose certificate a node asks for.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// `istio.v1.auth.IstioCertificateRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct IstioCertificateRequest {
    /// PKCS#10 in PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Seconds; the authority may give less.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// [`IMPERSONATED_IDENTITY`].
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// `istio.v1.auth.IstioCertificateResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct IstioCertificateResponse {
    /// PEM: the leaf, the intermediates, and last all roots together.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, Message)]
pub struct Struct {
    /// By name.
    #[prost(btree_map = "string, message", tag = "1")]
    pub fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`; of its kinds only strings are read.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    /// If it is a string.
    #[prost(string, optional, tag = "3")]
    pub string_value: Option<String>,
}

/// `X509SVIDRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct X509SvidRequest {}

/// `X509SVIDResponse`: everything the caller is entitled to, each time anew.
#[derive(Clone, PartialEq, Message)]
pub struct X509SvidResponse {
    /// One per identity.
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<X509Svid>,
    /// Bundles of other trust domains by their SPIFFE ID: DER, one after the other.
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub federated_bundles: BTreeMap<String, Vec<u8>>,
}

/// `X509SVID`.
#[derive(Clone, PartialEq, Message)]
pub struct X509Svid {
    /// Whose.
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// Leaf and intermediates in DER, one after the other.
    #[prost(bytes = "vec", tag = "2")]
    pub x509_svid: Vec<u8>,
    /// PKCS#8 in DER.
    #[prost(bytes = "vec", tag = "3")]
    pub x509_svid_key: Vec<u8>,
    /// Roots of the trust domain in DER, one after the other.
    #[prost(bytes = "vec", tag = "4")]
    pub bundle: Vec<u8>,
    /// Which is for what, where there are several.
    #[prost(string, tag = "5")]
    pub hint: String,
}

/// `google.rpc.Status`, the content of `grpc-status-details-bin`.
#[derive(Clone, PartialEq, Message)]
pub struct RpcStatus {
    /// As in `grpc-status`.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// As in `grpc-message`.
    #[prost(string, tag = "2")]
    pub message: String,
    /// [`ErrorInfo`] and others.
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub struct Any {
    /// What it is.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// Encoded.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// `google.rpc.ErrorInfo`.
#[derive(Clone, PartialEq, Message)]
pub struct ErrorInfo {
    /// The code of a [`Reason`](crate::model::Reason).
    #[prost(string, tag = "1")]
    pub reason: String,
    /// Whose reasons these are.
    #[prost(string, tag = "2")]
    pub domain: String,
}
