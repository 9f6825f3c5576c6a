//! `mesh-agent policy certificates`.

use std::fmt::Write;

use super::{Report, no_answer};
use crate::{
    admin::client,
    cli::{
        FAILED, RunDir,
        output::{
            Format,
            table::{Cell, Table},
            text::{Paint, Tone, printable, wrap},
            time, units, yaml,
        },
    },
    model::{CertificateState, CertificateStatus, Certificates},
};

const EXAMPLES: &str = "\
Examples:
  mesh-agent policy certificates
  mesh-agent policy certificates -o wide                                   with chains
  mesh-agent policy certificates -o json | jq '.certificates[] | select(.state != \"valid\") | .identity'

Exit codes: 0 every workload can prove who it is, 1 one cannot, 2 no agent answers.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    run_dir: RunDir,
    /// Format of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// No colours, as when standard output is not a terminal or NO_COLOR is set
    #[arg(long)]
    no_color: bool,
}

pub(super) async fn report(args: &Args) -> anyhow::Result<Report> {
    let certificates = match client::certificates(&args.run_dir.run_dir).await {
        Ok(certificates) => certificates,
        Err(error) => return Ok(no_answer(&error, &args.run_dir.run_dir)),
    };
    let paint = Paint::for_stream(&std::io::stdout(), args.no_color);
    let out = match args.output {
        Format::Table => table(&certificates, false, paint),
        Format::Wide => table(&certificates, true, paint),
        Format::Json => serde_json::to_string_pretty(&certificates)? + "\n",
        Format::Yaml => yaml::emit(&serde_json::to_value(&certificates)?),
    };
    let code = if certificates.usable() == certificates.certificates.len() { 0 } else { FAILED };
    Ok(Report { out, code, ..Report::default() })
}

/// For a terminal; `wide` with the chains.
pub(super) fn table(certificates: &Certificates, wide: bool, paint: Paint) -> String {
    let now = certificates.now;
    let mut out = String::new();
    match &certificates.authority {
        None => out.push_str("no certificate authority is configured\n"),
        Some(authority) => {
            let (word, tone) =
                if authority.is_answering { ("answers", Tone::Good) } else { ("DOES NOT ANSWER", Tone::Bad) };
            let _ = writeln!(out, "authority {}: {}", printable(&authority.description), paint.tone(word, tone));
            if let Some(error) = &authority.last_error {
                wrap(&mut out, error, 2, 110);
            }
        }
    }
    if certificates.certificates.is_empty() {
        out.push_str("no certificates: no workload of this node has an identity that is vouched for\n");
        return out;
    }
    let mut table =
        Table::default().left(&["IDENTITY", "STATE", "SERIAL", "ISSUED (UTC)", "EXPIRES (UTC)", "NEXT ROTATION"]);
    for certificate in &certificates.certificates {
        let instant = |unix: Option<u64>| unix.map_or_else(|| "-".to_owned(), time::utc);
        let serial = certificate.serial.as_deref().unwrap_or("-");
        let serial: String = if wide { serial.to_owned() } else { serial.chars().take(17).collect() };
        table.row(vec![
            certificate.identity.to_string().into(),
            state(certificate),
            serial.into(),
            instant(certificate.issued).into(),
            instant(certificate.expires).into(),
            match certificate.next_rotation {
                0 => "-".into(),
                at if at <= now => Cell::new("due", Tone::Warn),
                at => format!("in {}", units::seconds(at - now)).into(),
            },
        ]);
    }
    table.render(&mut out, 0, paint);
    for certificate in &certificates.certificates {
        let error = certificate.refusal.as_ref();
        if !wide && error.is_none() {
            continue;
        }
        let _ = writeln!(out, "\n{}", paint.tone(&certificate.identity.to_string(), Tone::Bold));
        for entry in certificate.chain.iter().filter(|_| wide) {
            let _ = writeln!(out, "  {}\n    sha256 {}", printable(&entry.subject), printable(&entry.fingerprint));
        }
        if let Some(error) = error {
            let text =
                format!("last request failed ({} in a row): {}: {}", error.attempts, error.reason, error.message);
            wrap(&mut out, &text, 2, 110);
        }
    }
    out
}

fn state(certificate: &CertificateStatus) -> Cell {
    match certificate.state {
        CertificateState::Valid if certificate.refusal.is_some() => Cell::new("OVERDUE", Tone::Warn),
        CertificateState::Valid => Cell::new("valid", Tone::Good),
        CertificateState::Missing if certificate.refusal.is_none() => Cell::new("pending", Tone::Warn),
        CertificateState::Missing => Cell::new("MISSING", Tone::Bad),
        CertificateState::TrustUnknown => Cell::new("NO ROOT", Tone::Bad),
        CertificateState::Expired => Cell::new("EXPIRED", Tone::Bad),
    }
}
