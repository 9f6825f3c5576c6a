//! `mesh-agent policy explain`.

use std::{fmt::Write, net::IpAddr, path::PathBuf};

use anyhow::Context;
use clap::ValueEnum;

use super::{Report, no_answer, offline};
use crate::{
    admin::client,
    cli::{
        FAILED, NO_AGENT, RunDir, host,
        output::{
            table::{Cell, Table},
            text::{Paint, Tone, printable, wrap},
            yaml,
        },
        status::section,
    },
    discovery::DEFAULT_ROOT_NAMESPACE,
    explain::{Query, Site, explain},
    model::{DEFAULT_TRUST_DOMAIN, Explanation, Mode, Party, PlaintextReason, Reason},
    route::transport::Here,
};

const EXAMPLES: &str = "\
SRC is NAMESPACE/POD, NAMESPACE/sa/SERVICE-ACCOUNT or an IP address;
DST is NAMESPACE/POD, NAMESPACE/SERVICE or an IP address.
Where a pod and a service share a name: NAMESPACE/pod/NAME, NAMESPACE/svc/NAME.

Examples:
  mesh-agent policy explain shop/cart-0 shop/payments 8080
  mesh-agent policy explain shop/sa/cart 10.0.3.7 8080
  mesh-agent policy explain 203.0.113.9 shop/web 80
  mesh-agent policy explain shop/cart-0 shop/payments 8080 --manifests ./pods    without an agent

Exit codes: 0 allowed, 1 denied (by at least one endpoint), 2 no answer.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// The admin socket's answer.
    Json,
    /// The same as YAML.
    Yaml,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Who calls
    #[arg(value_name = "SRC")]
    source: String,
    /// Who is called
    #[arg(value_name = "DST")]
    destination: String,
    /// On which port
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    #[command(flatten)]
    run_dir: RunDir,
    /// Read this folder of manifests instead of asking the running agent
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// With --manifests: the node that pods without a node are on [default: the host name]
    #[arg(long, value_name = "NAME", requires = "manifests")]
    node_name: Option<String>,
    /// With --manifests: the trust domain of all identities
    #[arg(long, value_name = "NAME", requires = "manifests", default_value = DEFAULT_TRUST_DOMAIN)]
    trust_domain: String,
    /// With --manifests: the namespace whose policies are those of the whole mesh
    #[arg(long, value_name = "NAME", requires = "manifests", default_value = DEFAULT_ROOT_NAMESPACE)]
    root_namespace: String,
    /// With --manifests: a further address of the node, whose connections (probes) pass; repeatable
    #[arg(long, value_name = "IP", requires = "manifests", value_delimiter = ',')]
    node_address: Vec<IpAddr>,
    /// Format of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// No colours, as when standard output is not a terminal or NO_COLOR is set
    #[arg(long)]
    no_color: bool,
}

pub(super) async fn report(args: &Args) -> anyhow::Result<Report> {
    let (answer, err) = match &args.manifests {
        Some(_) => match read(args).await {
            Ok(answer) => answer,
            Err(error) => return Ok(failed(&format!("{error:#}"))),
        },
        None => match client::explain(&args.run_dir.run_dir, &args.source, &args.destination, args.port).await {
            Ok(answer) => (answer, String::new()),
            // It knows no such name, and says so.
            Err(client::Error::Refused { status, body }) if status == 404 && !body.starts_with("no /v1") => {
                return Ok(failed(&body));
            }
            Err(error) => return Ok(no_answer(&error, &args.run_dir.run_dir)),
        },
    };
    let code = if answer.allowed { 0 } else { FAILED };
    let paint = Paint::for_stream(&std::io::stdout(), args.no_color);
    let out = match args.output {
        Format::Table => table(&answer, paint),
        Format::Json => serde_json::to_string_pretty(&answer)? + "\n",
        Format::Yaml => yaml::emit(&serde_json::to_value(&answer)?),
    };
    Ok(Report { out, err, code })
}

fn failed(why: &str) -> Report {
    Report { err: format!("mesh-agent: {}\n", printable(why)), code: NO_AGENT, ..Report::default() }
}

async fn read(args: &Args) -> anyhow::Result<(Explanation, String)> {
    let dir = args.manifests.as_deref().unwrap_or_else(|| std::path::Path::new("."));
    let node = match &args.node_name {
        Some(name) => name.clone(),
        None => host::node_name().context("cannot read the host name; give --node-name")?,
    };
    let mesh = offline::read(dir, &node, &args.trust_domain, &args.root_namespace).await?;
    let site = Site { here: Here { mesh: &mesh, node_addresses: &args.node_address }, direct: true };
    let query = Query { source: args.source.clone(), destination: args.destination.clone(), port: args.port };
    Ok((explain(site, &query)?, offline::problems(&mesh)))
}

/// All of it for a terminal.
pub(super) fn table(answer: &Explanation, paint: Paint) -> String {
    let denied = answer.paths.iter().filter(|path| !path.allowed).count();
    let (verdict, tone) = match (answer.allowed, denied == answer.paths.len()) {
        (true, _) => ("ALLOWED".to_owned(), Tone::Good),
        (false, true) => ("DENIED".to_owned(), Tone::Bad),
        (false, false) => (format!("DENIED by {denied} of {} endpoints", answer.paths.len()), Tone::Bad),
    };
    let mut out = paint.tone(&verdict, tone);
    if answer.reason != Reason::Ok {
        let _ = write!(out, "  {}: {}", answer.reason.code(), answer.reason.what());
    }
    out.push('\n');
    party(&mut out, "from", &answer.source, None);
    party(&mut out, "to", &answer.destination, Some(answer.port));
    for note in &answer.notes {
        let _ = writeln!(out, "  note  {}", printable(note));
    }
    if answer.paths.is_empty() {
        let _ = writeln!(out, "  remedy  {}", answer.reason.remedy());
        return out;
    }
    section(&mut out, "ENDPOINTS", "", paint);
    let mut table =
        Table::default().left(&["ENDPOINT", "ADDRESS", "NODE", "MODE", "VERDICT", "DECIDED BY", "WAY", "TRANSPORT"]);
    for path in &answer.paths {
        let address =
            path.endpoint.address.map_or_else(String::new, |ip| std::net::SocketAddr::new(ip, path.port).to_string());
        let verdict =
            if path.allowed { Cell::new("allowed", Tone::Good) } else { Cell::new(path.reason.code(), Tone::Bad) };
        let transport = match path.transport.plaintext_reason() {
            Some(reason) => Cell::new(format!("plaintext ({})", reason.code()), Tone::Warn),
            None => path.transport.name().into(),
        };
        table.row(vec![
            path.endpoint.name.clone().into(),
            address.into(),
            path.endpoint.node.clone().unwrap_or_else(|| "-".to_owned()).into(),
            path.mode.map_or("-", mode).into(),
            verdict,
            path.decided_by.clone().unwrap_or_else(|| "-".to_owned()).into(),
            path.way.name().into(),
            transport,
        ]);
    }
    table.render(&mut out, 2, paint);
    why(&mut out, answer);
    out
}

/// Why it goes as it goes, each sentence once.
fn why(out: &mut String, answer: &Explanation) {
    let mut lines: Vec<String> = Vec::new();
    for path in &answer.paths {
        lines.push(format!("{}: {}", path.way.name(), path.way_why));
        lines.extend(path.transport.plaintext_reason().map(|reason: PlaintextReason| {
            format!("plaintext ({}): {} {}", reason.code(), reason.what(), reason.remedy())
        }));
        lines.extend(path.dry_run.as_ref().map(|would| format!("dry run: {would}")));
        if !path.allowed {
            lines.push(format!("{}: {}", path.reason.code(), path.reason.remedy()));
        }
    }
    lines.sort();
    lines.dedup();
    for line in lines {
        wrap(out, &line, 2, 110);
    }
}

fn party(out: &mut String, role: &str, party: &Party, port: Option<u16>) {
    let mut line = format!("  {role:<5} {}", printable(&party.name));
    if let Some(address) = party.address.filter(|address| address.to_string() != party.name) {
        let _ = write!(line, " ({address})");
    }
    if let Some(port) = port {
        let _ = write!(line, ", port {port}");
    }
    match party.enrolled {
        Some(true) => line.push_str(", in the mesh"),
        Some(false) => line.push_str(", NOT in the mesh"),
        None => {}
    }
    if let Some(node) = &party.node {
        let _ = write!(line, ", on {}", printable(node));
    }
    let _ = writeln!(out, "{line}");
    if let Some(identity) = &party.identity {
        let _ = writeln!(out, "        {identity}");
    }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Permissive => "permissive",
        Mode::Strict => "strict",
        Mode::Disabled => "disabled",
    }
}
