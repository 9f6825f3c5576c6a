//! `mesh-agent explain`.

use std::fmt::Write;

use super::{
    FAILED,
    output::{
        table::Table,
        text::{Paint, Tone, wrap},
    },
    print,
};
use crate::{
    explain::near,
    model::{Reason, Side},
};

const EXAMPLES: &str = "\
Examples:
  mesh-agent explain                     all codes
  mesh-agent explain upstream_refused    one of them, with its remedy";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A reason code, as in status, logs and metrics
    code: Option<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let paint = Paint::for_stream(&std::io::stdout(), false);
    let Some(code) = &args.code else {
        print(&all(paint))?;
        return Ok(0);
    };
    if let Ok(reason) = code.trim().to_lowercase().parse() {
        print(&one(reason, paint))?;
        return Ok(0);
    }
    eprintln!("mesh-agent: {}", unknown(code));
    Ok(FAILED)
}

fn all(paint: Paint) -> String {
    let mut table = Table::default().left(&["CODE", "WHOSE", "WHAT"]);
    for reason in Reason::ALL {
        table.row(vec![reason.code().into(), whose(*reason).into(), reason.what().into()]);
    }
    let mut out = String::new();
    table.render(&mut out, 0, paint);
    out.push_str("\nThe remedy of one of them: mesh-agent explain CODE\n");
    out
}

fn one(reason: Reason, paint: Paint) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", paint.tone(reason.code(), Tone::Bold));
    for (name, text) in [("whose", whose(reason)), ("what", reason.what()), ("remedy", reason.remedy())] {
        let mut lines = String::new();
        wrap(&mut lines, text, 10, 100);
        let _ = write!(out, "  {name:<8}{}", lines.trim_start());
    }
    out
}

fn whose(reason: Reason) -> &'static str {
    match reason.side() {
        Side::Downstream => "client",
        Side::Upstream => "server",
        Side::Agent => "agent or host",
        Side::Configuration => "configuration",
    }
}

fn unknown(code: &str) -> String {
    let nearest = near(code, Reason::ALL.iter().map(|reason| reason.code()));
    let hint = nearest.first().map(|known| format!("did you mean {known}? ")).unwrap_or_default();
    format!("there is no reason code {code:?}; {hint}`mesh-agent explain` lists them all")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed_and_explained() {
        let table = all(Paint::PLAIN);
        for reason in Reason::ALL {
            assert!(table.contains(reason.code()));
            let text = one(*reason, Paint::PLAIN);
            assert!(text.contains(&reason.remedy()[..10]), "{text}");
        }
    }

    #[test]
    fn a_slip_of_the_pen_gets_a_suggestion() {
        assert!(unknown("upstream_refuse").contains("did you mean upstream_refused?"));
        assert!(unknown("netns-missing").contains("did you mean netns_missing?"));
        assert!(!unknown("zzz").contains("did you mean"));
    }
}
