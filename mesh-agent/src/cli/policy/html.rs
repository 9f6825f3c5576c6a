//! The audit as one page that needs nothing else: no script, no font, no picture from elsewhere.

use std::fmt::Write;

use super::words;
use crate::{
    cli::output::{time, units},
    model::{Audit, Identity, PlaintextReason, PodState},
};

const STYLE: &str = include_str!("page.css");

/// The whole page.
pub(super) fn page(audit: &Audit) -> String {
    let node = escape(&audit.node);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>Unencrypted traffic of node {node}, {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        time::utc(audit.generated)
    );
    head(&mut out, audit);
    shares(&mut out, audit);
    flows(&mut out, audit);
    unobserved(&mut out, audit);
    coverage(&mut out, audit);
    refused(&mut out, audit);
    reading(&mut out, audit);
    out.push_str("</body>\n</html>\n");
    out
}

/// Text as it may stand in an element or in a quoted attribute. Control characters, which HTML does not allow, are shown as
/// U+FFFD.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // What turns the direction of text could make a row say something else.
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

fn head(out: &mut String, audit: &Audit) {
    let _ = writeln!(out, "<h1>Unencrypted traffic of node {}</h1>", escape(&audit.node));
    let (flows, unseen) = (audit.flows.len(), words::unobserved(audit));
    let crossed = match flows {
        0 => "The mesh carried nothing across this node's edge unencrypted in this period.".to_owned(),
        1 => "One kind of connection crossed this node's edge unencrypted in this period.".to_owned(),
        n => format!("{n} kinds of connections crossed this node's edge unencrypted in this period."),
    };
    let silent: Vec<&str> = [
        (unseen > 0).then_some("connections passed by the agent"),
        words::blind_spot(audit).map(|_| "the agent did not run during all of it"),
        audit
            .coverage
            .iter()
            .any(|pod| pod.state != PodState::Armed)
            .then_some("not all pods of the node are in the mesh"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let limits = if silent.is_empty() {
        String::new()
    } else {
        format!(" This is not the whole picture: {}; see below.", silent.join(", "))
    };
    let class = if flows == 0 && silent.is_empty() { "verdict good" } else { "verdict" };
    let _ = writeln!(out, "<p class=\"{class}\">{crossed}{limits}</p>\n<dl>");
    let period = format!("{} to {} UTC", time::utc(audit.since), time::utc(audit.generated));
    let rows = [
        ("Node", audit.node.clone()),
        ("Period", period),
        ("Report made", format!("{} UTC", time::utc(audit.generated))),
        ("Observed by", format!("mesh-agent {}, started {} UTC", audit.version, time::utc(audit.agent_started))),
        (
            "Gaps",
            words::blind_spot(audit).map_or_else(
                || "none; gaps of single pods are in the table of coverage".to_owned(),
                |(from, until)| {
                    format!(
                        "{} to {}: before this agent started, there is no record",
                        time::clock(from),
                        time::clock(until)
                    )
                },
            ),
        ),
    ];
    for (name, value) in rows {
        let _ = writeln!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    out.push_str("</dl>\n");
}

fn shares(out: &mut String, audit: &Audit) {
    out.push_str("<h2>What the mesh carried</h2>\n");
    let total = audit.shares.total();
    if total.bytes == 0 {
        out.push_str("<p>No bytes in this period.</p>\n");
    } else {
        out.push_str("<svg viewBox=\"0 0 1000 40\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"Shares of bytes: see the table\">\n");
        let mut x = 0.0;
        for (name, _, volume) in words::parts(&audit.shares) {
            let width = words::share(volume.bytes, total.bytes).unwrap_or(0.0) * 1000.0;
            if volume.bytes > 0 {
                let class = class(name);
                let _ =
                    writeln!(out, "<rect class=\"{class}\" x=\"{x:.2}\" y=\"0\" width=\"{width:.2}\" height=\"40\"/>");
            }
            x += width;
        }
        out.push_str("</svg>\n");
    }
    out.push_str(
        "<div class=\"wide\"><table><thead><tr><th>Kind</th><th>What it means</th><th class=\"n\">Connections</th><th class=\"n\">Bytes</th>\
         <th class=\"n\">Share of bytes</th></tr></thead>\n<tbody>\n",
    );
    for (name, what, volume) in words::parts(&audit.shares) {
        let percent = words::share(volume.bytes, total.bytes).map_or_else(|| "–".to_owned(), units::percent);
        let _ = writeln!(
            out,
            "<tr><td class=\"t\"><span class=\"key {}\"></span>{name}</td><td>{what}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            class(name),
            units::count(volume.connections),
            units::bytes(volume.bytes),
            escape(&percent)
        );
    }
    out.push_str("</tbody></table></div>\n");
}

fn class(part: &str) -> &'static str {
    match part {
        "encrypted" => "mutual",
        "local" => "local",
        _ => "plaintext",
    }
}

fn flows(out: &mut String, audit: &Audit) {
    out.push_str("<h2>What crossed the node's edge unencrypted</h2>\n");
    if audit.flows.is_empty() {
        out.push_str("<p>Nothing that the mesh carried.</p>\n");
        return;
    }
    out.push_str(
        "<p class=\"soft\">One row per pod, other end, port and reason. Sent and received as seen from the pod. Identities \
         follow from addresses: in plaintext nobody proves who they are.</p>\n<div class=\"wide\"><table><thead><tr><th>Pod</th>\
         <th>Other end</th><th class=\"n\">Port</th><th class=\"n\">Connections</th><th class=\"n\">Sent<br>Received</th>\
         <th>First seen<br>Last seen</th><th>Why unencrypted</th></tr></thead>\n<tbody>\n",
    );
    for flow in &audit.flows {
        let connections = match flow.open {
            0 => units::count(flow.connections),
            open => {
                format!("{}<br><span class=\"soft\">{} open</span>", units::count(flow.connections), units::count(open))
            }
        };
        let _ = writeln!(
            out,
            "<tr><td>{}{}</td><td>{} {}{}</td><td class=\"n\">{}</td><td class=\"n\">{connections}</td>\
             <td class=\"n\">{}<br>{}</td><td class=\"t\">{}<br>{}</td><td>{}</td></tr>",
            escape(&flow.pod.to_string()),
            identity(flow.pod_identity.as_ref()),
            words::arrow(flow.direction),
            escape(&flow.peer.to_string()),
            identity(flow.peer_identity.as_ref()),
            port(flow.port),
            units::bytes(flow.from_pod_bytes),
            units::bytes(flow.to_pod_bytes),
            instant(flow.first_seen, audit),
            instant(flow.last_seen, audit),
            reason(flow.reason)
        );
    }
    out.push_str("</tbody></table></div>\n");
    if audit.summed_up > 0 {
        let _ = writeln!(
            out,
            "<p>{} connections since the agent started are summed up in rows of <em>(others)</em>: there were too many other \
             ends to tell them apart. Their bytes are counted in full.</p>",
            units::count(audit.summed_up)
        );
    }
}

fn unobserved(out: &mut String, audit: &Audit) {
    out.push_str("<h2>What could not be observed</h2>\n");
    if audit.unobserved.is_empty() {
        out.push_str("<p>No TCP connection of a pod in the mesh passed by the agent.</p>\n");
        return;
    }
    out.push_str(
        "<p class=\"soft\">The kernel counted these connections and let them pass. How many bytes they carried, and whether \
         the apps encrypted them themselves, is not known.</p>\n<div class=\"wide\"><table><thead><tr><th>Pod</th><th>Direction</th>\
         <th class=\"n\">Connections</th><th>When</th><th>Bytes</th><th>Why not observed</th></tr></thead>\n<tbody>\n",
    );
    for row in &audit.unobserved {
        let when = if row.before_start { "before this agent started; the time is not known" } else { "in the period" };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td>{when}</td><td class=\"t\">unknown</td><td>{}</td></tr>",
            escape(&row.pod.to_string()),
            row.direction.name(),
            units::count(row.connections),
            reason(row.reason)
        );
    }
    out.push_str("</tbody></table></div>\n");
}

fn coverage(out: &mut String, audit: &Audit) {
    out.push_str("<h2>Which pods were observed</h2>\n");
    if audit.coverage.is_empty() {
        out.push_str("<p>The mesh knows of no pod on this node.</p>\n");
        return;
    }
    out.push_str("<div class=\"wide\"><table><thead><tr><th>Pod</th><th>State</th><th>Observed (UTC)</th></tr></thead>\n<tbody>\n");
    for pod in &audit.coverage {
        let observed = words::observed(audit, pod);
        let observed = if observed.is_empty() { "never: nothing is known of its traffic" } else { &observed };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{observed}</td></tr>",
            escape(&pod.pod.to_string()),
            words::state(pod.state)
        );
    }
    out.push_str("</tbody></table></div>\n");
}

fn refused(out: &mut String, audit: &Audit) {
    out.push_str("<h2>Who was refused</h2>\n");
    if audit.refused.is_empty() {
        out.push_str("<p>Nobody since the agent started.</p>\n");
        return;
    }
    out.push_str(
        "<p class=\"soft\">Since the agent started, latest first.</p>\n<div class=\"wide\"><table><thead><tr><th>Source</th><th>Destination</th>\
         <th class=\"n\">Port</th><th class=\"n\">Times</th><th>First<br>Last</th><th>Why</th><th>Decided by</th></tr></thead>\n<tbody>\n",
    );
    for row in &audit.refused {
        let from = row.source_address.map_or_else(
            || if row.source_identity.is_some() { "a pod of this node".to_owned() } else { "(others)".to_owned() },
            |address| address.to_string(),
        );
        let _ = writeln!(
            out,
            "<tr><td>{}{}</td><td>{}{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"t\">{}<br>{}</td>\
             <td>{}<br><code class=\"soft\">{}</code></td><td>{}</td></tr>",
            escape(&from),
            identity(row.source_identity.as_ref()),
            escape(&row.destination.to_string()),
            identity(row.destination_identity.as_ref()),
            port(row.port),
            units::count(row.count),
            instant(row.first_seen, audit),
            instant(row.last_seen, audit),
            escape(row.reason.what()),
            row.reason.code(),
            row.decided_by.as_deref().map_or_else(|| "–".to_owned(), escape)
        );
    }
    out.push_str("</tbody></table></div>\n");
}

fn reading(out: &mut String, audit: &Audit) {
    out.push_str(
        "<h2>How to read this</h2>\n<p>“Unencrypted” means that the mesh did not encrypt: an app may have spoken TLS by itself, \
         which the mesh neither looks for nor counts. Only TCP is observed; UDP and other protocols pass. Bytes are those of the \
         apps, without the headers of the network. Bytes of connections that the kernel joins directly on the node count when \
         these are closed, and as local. The period begins with a whole minute; all times are UTC. Pods that are not in the mesh are not observed at \
         all.</p>\n",
    );
    let reasons: std::collections::BTreeSet<PlaintextReason> =
        audit.flows.iter().map(|flow| flow.reason).chain(audit.unobserved.iter().map(|row| row.reason)).collect();
    if !reasons.is_empty() {
        out.push_str(
            "<div class=\"wide\"><table><thead><tr><th>Reason</th><th>What ends it</th></tr></thead>\n<tbody>\n",
        );
        for reason in reasons {
            let _ = writeln!(
                out,
                "<tr><td class=\"t\"><code>{reason}</code></td><td>{}</td></tr>",
                escape(reason.remedy())
            );
        }
        out.push_str("</tbody></table></div>\n");
    }
}

fn reason(reason: PlaintextReason) -> String {
    format!("{}<br><code class=\"soft\">{}</code>", escape(reason.what()), reason.code())
}

/// A line of its own, which may be broken after slashes.
fn identity(identity: Option<&Identity>) -> String {
    let text = identity
        .map(|identity| escape(&identity.to_string()).replace("/ns/", "<wbr>/ns/").replace("/sa/", "<wbr>/sa/"));
    text.map(|text| format!("<br><span class=\"soft\">{text}</span>")).unwrap_or_default()
}

/// The time, and the date where it is not that of the report.
fn instant(unix: u64, audit: &Audit) -> String {
    if time::date(unix) == time::date(audit.generated) { time::clock(unix) } else { time::utc(unix) }
}

/// 0 stands for several.
fn port(port: u16) -> String {
    if port == 0 { "several".to_owned() } else { port.to_string() }
}
