//! The annotations `mesh-agent.io/*`, and the label `mesh-agent.io/mesh`.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;

use super::{
    field::{Field, FieldError, Result, shown},
    object::{Doubt, Kind, Netns, Settings},
};
use crate::{
    kubernetes::writeback,
    model::{Mode, Reason},
};

const PREFIX: &str = "mesh-agent.io/";
/// Written by the agent itself; nothing for it to read.
const RESERVED: &str = "mesh-agent.io/status";
const MESH: &str = "mesh-agent.io/mesh";
/// On Pods of manifests.
pub(super) const NETNS: &str = "mesh-agent.io/netns";
const AUDIT: &str = "mesh-agent.io/audit";

/// On Namespaces and Pods.
const COMMON: [&str; 6] = [
    MESH,
    "mesh-agent.io/mode",
    "mesh-agent.io/exclude-outbound-ports",
    "mesh-agent.io/exclude-inbound-ports",
    "mesh-agent.io/exclude-outbound-cidrs",
    "mesh-agent.io/exclude-inbound-cidrs",
];

/// Most ports, and most CIDRs, of one annotation: each takes an entry in the kernel.
const MAX_EXCLUSIONS: usize = 256;

/// Where a bare name of a network namespace is looked up, as by `ip netns`.
const NETNS_FOLDER: &str = "/run/netns";

/// Reads `metadata.labels` and `metadata.annotations` of an object.
///
/// # Errors
/// A key with our prefix that is unknown, or not for this kind, or has an unknown value.
pub(super) fn settings(metadata: &Field<'_>, kind: Kind) -> Result<Settings> {
    let reading = read(metadata, kind);
    reading.error.map_or(Ok(reading.settings), Err)
}

/// As much of the same as can be read.
pub(super) fn readable(metadata: &Field<'_>, kind: Kind) -> Settings {
    let Reading { mut settings, mesh, error } = read(metadata, kind);
    let of_mesh = mesh.is_some_and(|mesh| mesh.is_err());
    settings.doubt = error.map(|error| Doubt { field: error.field.into(), of_mesh });
    settings
}

/// What has been read so far.
#[derive(Default)]
struct Reading {
    settings: Settings,
    /// What was last said of it, if that could be read.
    mesh: Option<std::result::Result<bool, ()>>,
    /// The first.
    error: Option<FieldError>,
}

impl Reading {
    fn note<T>(&mut self, read: Result<T>) -> std::result::Result<T, ()> {
        read.map_err(|error| {
            self.error.get_or_insert(error);
        })
    }

    fn toggle(&mut self, field: &Field<'_>) {
        let mesh = self.note(toggle(field));
        self.mesh = Some(mesh);
        self.settings.mesh = mesh.ok();
    }
}

fn read(metadata: &Field<'_>, kind: Kind) -> Reading {
    let mut reading = Reading::default();
    let labels = metadata.get("labels");
    match labels.entries() {
        Ok(labels) => {
            for (key, field) in labels.filter(|(key, _)| is_ours(key)) {
                if key == MESH && takes_settings(kind) {
                    reading.toggle(&field);
                } else {
                    let _ = reading.note::<()>(Err(unknown(&field, key, kind, true)));
                }
            }
        }
        Err(error) => reading.mesh = Some(reading.note(Err(error))),
    }
    let annotations = metadata.get("annotations");
    match annotations.entries() {
        Ok(annotations) => {
            for (key, field) in annotations {
                if key == MESH && takes_settings(kind) {
                    reading.toggle(&field);
                } else if is_ours(key) {
                    let read = annotation(&mut reading.settings, kind, key, &field);
                    let _ = reading.note(read);
                } else if key == writeback::STATUS && kind == Kind::Pod {
                    let status = field.text().ok().flatten().and_then(writeback::PodStatus::parse);
                    reading.settings.told = status.map(|status| status.mode);
                }
            }
        }
        Err(error) => reading.mesh = Some(reading.note(Err(error))),
    }
    reading
}

fn annotation(settings: &mut Settings, kind: Kind, key: &str, field: &Field<'_>) -> Result<()> {
    if !known(kind).any(|known| known == key) {
        return Err(unknown(field, key, kind, false));
    }
    match key.strip_prefix(PREFIX).unwrap_or(key) {
        "mode" => settings.mode = Some(mode(field)?),
        "exclude-outbound-ports" => settings.outbound_ports = Some(ports(field)?),
        "exclude-inbound-ports" => settings.inbound_ports = Some(ports(field)?),
        "exclude-outbound-cidrs" => settings.outbound_cidrs = Some(cidrs(field)?),
        "exclude-inbound-cidrs" => settings.inbound_cidrs = Some(cidrs(field)?),
        "audit" => settings.audit = boolean(field)?,
        "netns" => settings.netns = Some(Netns { path: netns(field)?, line: field.line() }),
        _ => return Err(unknown(field, key, kind, false)),
    }
    Ok(())
}

fn is_ours(key: &str) -> bool {
    key.starts_with(PREFIX) && !key.starts_with(RESERVED)
}

fn takes_settings(kind: Kind) -> bool {
    matches!(kind, Kind::Namespace | Kind::Pod)
}

fn known(kind: Kind) -> impl Iterator<Item = &'static str> {
    let common = if takes_settings(kind) { COMMON.as_slice() } else { &[] };
    let special = match kind {
        Kind::Pod => Some(NETNS),
        Kind::AuthorizationPolicy => Some(AUDIT),
        _ => None,
    };
    common.iter().copied().chain(special)
}

fn unknown(field: &Field<'_>, key: &str, kind: Kind, label: bool) -> FieldError {
    let name = kind.name();
    let nearest = COMMON.into_iter().chain([NETNS, AUDIT]).min_by_key(|known| distance(key, known)).unwrap_or(MESH);
    let (message, remedy) = if nearest == key && label && takes_settings(kind) {
        (format!("{key} is not read as a label"), "Make it an annotation.".to_owned())
    } else if nearest == key {
        let place = if key == AUDIT { "an AuthorizationPolicy" } else { "a Pod or a Namespace" };
        (format!("{key} has no meaning on a {name}"), format!("Put it on {place}, or remove it."))
    } else if distance(key, nearest) <= 4 {
        (format!("{key} is unknown"), format!("Did you mean {nearest}?"))
    } else {
        let known: Vec<_> = known(kind).collect();
        let remedy = match known.as_slice() {
            [] => format!("Remove it: the agent reads no annotations of its own on a {name}."),
            known => format!("Remove it, or use one of {}.", known.join(", ")),
        };
        (format!("{key} is unknown"), remedy)
    };
    field.error(Reason::UnknownAnnotation, message, remedy)
}

/// Edits (insert, delete, replace a character) from one name to the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(b.chars()) {
            let new = (diagonal + usize::from(a != b)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, new);
            left = new;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

fn bad_value(field: &Field<'_>, value: &str, what: &str, remedy: &str) -> FieldError {
    field.error(Reason::UnknownAnnotation, format!("{} {what}", shown(value)), remedy)
}

fn value<'a>(field: &Field<'a>) -> Result<&'a str> {
    Ok(field.text()?.unwrap_or_default().trim())
}

fn toggle(field: &Field<'_>) -> Result<bool> {
    match value(field)? {
        "enabled" => Ok(true),
        "disabled" => Ok(false),
        other => Err(bad_value(field, other, "is not one of enabled, disabled", "Write enabled or disabled.")),
    }
}

fn boolean(field: &Field<'_>) -> Result<bool> {
    match value(field)? {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(bad_value(field, other, "is not one of true, false", "Write \"true\" or \"false\".")),
    }
}

fn mode(field: &Field<'_>) -> Result<Mode> {
    match value(field)? {
        "permissive" => Ok(Mode::Permissive),
        "strict" => Ok(Mode::Strict),
        "disabled" => Ok(Mode::Disabled),
        other => {
            let what = "is not one of permissive, strict, disabled";
            Err(bad_value(field, other, what, "Write permissive, strict or disabled."))
        }
    }
}

/// The items of a comma list; an empty text is an empty list.
fn list<'a>(field: &Field<'a>) -> Result<impl Iterator<Item = &'a str>> {
    let text = value(field)?;
    Ok(text.split(',').map(str::trim).filter(move |_| !text.is_empty()))
}

fn ports(field: &Field<'_>) -> Result<Vec<u16>> {
    let mut ports = Vec::new();
    for item in list(field)? {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let range = match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
            (Ok(first), Ok(last)) if first > 0 && first <= last => first..=last,
            _ => {
                let remedy = "Write ports like 8080 and ranges like 8000-8010, separated by commas.";
                return Err(bad_value(field, item, "is not a port or a range of ports", remedy));
            }
        };
        // Checked before the range is written out.
        if ports.len() + range.len() > MAX_EXCLUSIONS {
            return Err(too_many(field, item, "ports"));
        }
        ports.extend(range);
    }
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

fn cidrs(field: &Field<'_>) -> Result<Vec<IpNet>> {
    let mut cidrs = Vec::new();
    for item in list(field)? {
        let Some(cidr) = cidr(item) else {
            let remedy = "Write blocks like 10.0.0.0/8 or fd00::/8 and addresses like 10.0.0.1, separated by commas.";
            return Err(bad_value(field, item, "is not a CIDR or an IP address", remedy));
        };
        if cidrs.len() == MAX_EXCLUSIONS {
            return Err(too_many(field, item, "CIDRs"));
        }
        cidrs.push(cidr);
    }
    cidrs.sort_unstable();
    cidrs.dedup();
    Ok(cidrs)
}

/// The block, without host bits; a v4-mapped one as IPv4.
pub(super) fn cidr(text: &str) -> Option<IpNet> {
    let net = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
    let net = match (net.addr().to_canonical(), net.prefix_len()) {
        (IpAddr::V4(v4), prefix) if net.addr().is_ipv6() => IpNet::new(v4.into(), prefix.checked_sub(96)?).ok()?,
        _ => net,
    };
    Some(net.trunc())
}

fn too_many(field: &Field<'_>, item: &str, what: &str) -> FieldError {
    let message = format!("more than {MAX_EXCLUSIONS} {what}, at {}", shown(item));
    field.error(Reason::UnknownAnnotation, message, format!("Exclude at most {MAX_EXCLUSIONS} {what}."))
}

fn netns(field: &Field<'_>) -> Result<PathBuf> {
    let text = value(field)?;
    match Path::new(text) {
        path if path.is_absolute() && !text.contains('\0') => Ok(path.to_owned()),
        name if !text.is_empty() && !text.contains(['/', '\0']) && !matches!(text, "." | "..") => {
            Ok(Path::new(NETNS_FOLDER).join(name))
        }
        _ => {
            let remedy = "Write a name as `ip netns list` shows it, or an absolute path.";
            Err(bad_value(field, text, "is neither a name nor an absolute path of a network namespace", remedy))
        }
    }
}
