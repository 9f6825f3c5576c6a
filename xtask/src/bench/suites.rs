//! The suites: which loads there are and which figures each gives.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, bail};

use super::{
    apps::{ECHO, HTTP, SINK},
    measure::{Measured, measure},
    memory::Memory,
    rig::Rig,
};
use crate::lab::{
    accounts::Role,
    load::{self, Client},
};

/// Names of the suites, in the order they run. `idle` and `load` are the memory before and after.
pub(super) const SUITES: [&str; 10] = ["c1", "c16", "c64", "r2000", "conn", "bulk", "pp", "hold", "quiet", "flip"];

/// The figures of one configuration in one round, in the order they were measured.
#[derive(Default)]
pub(super) struct Figures(pub(super) Vec<(String, f64)>);

impl Figures {
    /// One more.
    pub(super) fn put(&mut self, metric: impl Into<String>, value: f64) {
        self.0.push((metric.into(), value));
    }
}

/// What `--only` asks for: nothing is everything.
pub(super) struct Selection(Vec<String>);

impl Selection {
    /// From suite names, metric names, and beginnings of those (`http.c64`).
    ///
    /// # Errors
    /// A word is none of these.
    pub(super) fn parse(words: &[String]) -> Result<Self> {
        for word in words {
            let prefixes = SUITES.iter().flat_map(|suite| prefixes(suite).iter().copied());
            if !SUITES.contains(&word.as_str())
                && !prefixes.chain(["idle.", "load.", "procs", "sync.", "changes."]).any(|prefix| related(prefix, word))
            {
                bail!(
                    "--only {word}: neither a suite ({}) nor a metric (such as http.c64.rps, conn.cps, pp1.p50, idle.rss_kb)",
                    SUITES.join(", ")
                );
            }
        }
        Ok(Self(words.to_vec()))
    }

    /// Whether a suite is to be run.
    pub(super) fn runs(&self, suite: &str) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|word| word == suite || prefixes(suite).iter().any(|prefix| related(prefix, word)))
    }

    /// Whether a metric is to be reported.
    pub(super) fn reports(&self, metric: &str) -> bool {
        let of = |word: &str| {
            if SUITES.contains(&word) {
                return prefixes(word).iter().any(|prefix| metric.starts_with(prefix));
            }
            metric.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.0.is_empty() || self.0.iter().any(|word| of(word))
    }
}

/// Whether a word names a metric with this prefix, or the prefix itself.
fn related(prefix: &str, word: &str) -> bool {
    word.starts_with(prefix) || prefix.trim_end_matches('.') == word
}

fn prefixes(suite: &str) -> &'static [&'static str] {
    match suite {
        "c1" => &["http.c1."],
        "c16" => &["http.c16."],
        "c64" => &["http.c64."],
        "r2000" => &["http.r2000."],
        "conn" => &["conn."],
        "bulk" => &["bulk."],
        "pp" => &["pp1.", "pp1k."],
        "hold" => &["hold."],
        "quiet" => &["quiet."],
        "flip" => &["flip."],
        _ => &[],
    }
}

/// Runs the selected suites from `netns` to `target`; `pids` are the proxies.
///
/// # Errors
/// A client fails, or a measured request did: figures of a path that loses requests mean nothing.
pub(super) fn run(
    rig: &Rig,
    only: &Selection,
    netns: &str,
    target: Ipv4Addr,
    pids: &dyn Fn() -> Result<Vec<u32>>,
) -> Result<Figures> {
    let mut figures = Figures::default();
    let memory = || pids().and_then(|pids| Memory::of(&pids));
    let idle = memory()?;
    figures.put("idle.rss_kb", idle.rss_kb as f64);
    figures.put("idle.anon_kb", idle.anon_kb as f64);
    let suite = Suite { rig, netns, target };
    for (name, connections, rate) in [("c1", 1, None), ("c16", 16, None), ("c64", 64, None), ("r2000", 16, Some(2000))]
    {
        if only.runs(name) {
            suite.http(&mut figures, name, connections, rate)?;
        }
    }
    if only.runs("conn") {
        suite.connections(&mut figures)?;
    }
    if only.runs("bulk") {
        suite.bulk(&mut figures)?;
    }
    if only.runs("pp") {
        suite.ping_pong(&mut figures, "pp1", 1)?;
        suite.ping_pong(&mut figures, "pp1k", 1024)?;
    }
    let loaded = memory()?;
    figures.put("load.rss_kb", loaded.rss_kb as f64);
    figures.put("load.anon_kb", loaded.anon_kb as f64);
    figures.put("procs", loaded.processes as f64);
    // Without a proxy there is nothing that could hold memory for a connection.
    if only.runs("hold") && loaded.processes > 0 {
        suite.hold(&mut figures, &memory)?;
    }
    let noise =
        figures.0.iter().filter(|(metric, _)| unit(metric) == "CPUs").map(|(_, value)| *value).fold(0.0, f64::max);
    eprintln!("  CPUs busy with other work: up to {noise:.2}");
    figures.0.retain(|(metric, _)| only.reports(metric));
    Ok(figures)
}

struct Suite<'a> {
    rig: &'a Rig,
    netns: &'a str,
    target: Ipv4Addr,
}

impl Suite<'_> {
    fn load(&self, mode: &str, port: u16, rest: &[&str]) -> Result<Measured> {
        let address = format!("{}:{port}", self.target);
        let length = self.rig.length.as_secs_f64().to_string();
        let words = [mode, &address, "--seconds", &length];
        let args: Vec<_> = words.iter().chain(rest).map(ToString::to_string).collect();
        measure(self.rig, self.netns, &args)
    }

    fn http(&self, figures: &mut Figures, name: &str, connections: u32, rate: Option<u32>) -> Result<()> {
        let mut rest = vec!["--connections".to_owned(), connections.to_string()];
        if let Some(rate) = rate {
            rest.extend(["--rate".to_owned(), rate.to_string()]);
        }
        let measured = self.load("http", HTTP, &rest.iter().map(String::as_str).collect::<Vec<_>>())?;
        let tag = format!("http.{name}");
        figures.put(format!("{tag}.rps"), measured.answer.rps);
        percentiles(figures, &tag, &measured);
        per_unit(figures, &format!("{tag}.proxy_us_req"), &format!("{tag}.total_us_req"), &measured);
        if let Some(share) = measured.kernel_share() {
            figures.put(format!("{tag}.sysfrac"), share);
        }
        finish(figures, &tag, &measured);
        Ok(())
    }

    fn connections(&self, figures: &mut Figures) -> Result<()> {
        let measured = self.load("http", HTTP, &["--close", "--connections", "8"])?;
        figures.put("conn.cps", measured.answer.rps);
        percentiles(figures, "conn", &measured);
        per_unit(figures, "conn.proxy_us", "conn.total_us", &measured);
        finish(figures, "conn", &measured);
        Ok(())
    }

    fn bulk(&self, figures: &mut Figures) -> Result<()> {
        let measured = self.load("upload", SINK, &[])?;
        let gigabytes = measured.answer.total as f64 / 1e9;
        figures.put("bulk.gbit", measured.answer.gbit_s);
        figures.put("bulk.proxy_cpu_s_GB", measured.cpu(Role::Proxy).as_secs_f64() / gigabytes);
        figures.put("bulk.total_cpu_s_GB", measured.cpu_total().as_secs_f64() / gigabytes);
        finish(figures, "bulk", &measured);
        Ok(())
    }

    fn ping_pong(&self, figures: &mut Figures, tag: &str, size: u32) -> Result<()> {
        let measured = self.load("ping-pong", ECHO, &["--size", &size.to_string()])?;
        percentiles(figures, tag, &measured);
        per_unit(figures, &format!("{tag}.proxy_us"), &format!("{tag}.total_us"), &measured);
        finish(figures, tag, &measured);
        Ok(())
    }

    fn hold(&self, figures: &mut Figures, memory: &dyn Fn() -> Result<Memory>) -> Result<()> {
        const PATIENCE: Duration = Duration::from_mins(2);
        let (rig, wanted) = (self.rig, self.rig.hold);
        let args = ["hold".to_owned(), format!("{}:{HTTP}", self.target), "--connections".into(), wanted.to_string()];
        let before = memory()?;
        let mut client = Client::start(&rig.launch(self.netns, Role::Client), &rig.tool, &args)?;
        let open = client.answer(PATIENCE).context("hold")?;
        let after = memory()?;
        client.finish();
        let kept = client.answer(PATIENCE).context("hold")?;
        if let Some(error) = open.first_error.or(kept.first_error) {
            eprintln!("  hold: {} opened, {} alive at the end: {error}", open.done, kept.done);
        }
        let grown = after.anon_kb as f64 - before.anon_kb as f64;
        figures.put("hold.kb_conn", grown / open.done.max(1) as f64);
        figures.put("hold.rss_kb", after.rss_kb as f64);
        figures.put("hold.done", open.done as f64);
        figures.put("hold.lost", (wanted - kept.done.min(wanted)) as f64);
        Ok(())
    }
}

fn percentiles(figures: &mut Figures, tag: &str, measured: &Measured) {
    let load::Answer { p50_us, p90_us, p99_us, .. } = measured.answer;
    for (name, value) in [("p50", p50_us), ("p90", p90_us), ("p99", p99_us)] {
        figures.put(format!("{tag}.{name}"), value);
    }
}

/// Microseconds of CPU per request, round trip or connection.
fn per_unit(figures: &mut Figures, proxy: &str, total: &str, measured: &Measured) {
    let units = measured.answer.total.max(1) as f64;
    figures.put(proxy, measured.cpu(Role::Proxy).as_secs_f64() * 1e6 / units);
    figures.put(total, measured.cpu_total().as_secs_f64() * 1e6 / units);
}

fn finish(figures: &mut Figures, tag: &str, measured: &Measured) {
    if let Some(error) = &measured.answer.first_error {
        eprintln!("  {tag}: {} of {} failed: {error}", measured.answer.errors, measured.answer.total);
    }
    // Who is on other machines otherwise, and takes CPU from the load here.
    if measured.is_large {
        figures.put(format!("{tag}.agent_cores"), measured.cores(Role::Proxy));
        figures.put(format!("{tag}.api_cores"), measured.cores(Role::Cluster));
        figures.put(format!("{tag}.changer_cores"), measured.cores(Role::Changer));
    }
    figures.put(format!("{tag}.errors"), measured.answer.errors as f64);
    figures.put(format!("{tag}.noise"), measured.noise);
}

/// The unit of a metric, by its name.
pub(super) fn unit(metric: &str) -> &'static str {
    match metric.rsplit('.').next().unwrap_or_default() {
        "rps" => "req/s",
        "cps" => "conn/s",
        "gbit" => "Gbit/s",
        "p50" | "p90" | "p99" | "max" | "request_p50" | "request_p99" | "late_p99" | "late_max" | "answered_p99" => {
            "us"
        }
        "ready_ms" => "ms",
        "agent_cores" | "api_cores" | "changer_cores" => "cores",
        "per_s" | "published_s" => "per s",
        "proxy_us_req" | "total_us_req" => "us/req",
        "proxy_us" | "total_us" if metric.starts_with("conn") => "us/conn",
        "proxy_us" | "total_us" => "us/round trip",
        "proxy_cpu_s_GB" | "total_cpu_s_GB" => "s/GB",
        "kb_conn" => "KiB/conn",
        "rss_kb" | "anon_kb" => "KiB",
        "noise" => "CPUs",
        "sysfrac" | "direct_share" => "share",
        _ => "count",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(words: &[&str]) -> Result<Selection> {
        Selection::parse(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn a_suite_a_metric_or_a_prefix_select_what_they_name() {
        let only = selection(&["conn", "http.c64.rps", "pp1"]).unwrap();
        assert!(only.runs("conn") && only.runs("c64") && only.runs("pp") && !only.runs("c1") && !only.runs("hold"));
        assert!(only.reports("conn.cps") && only.reports("http.c64.rps") && only.reports("pp1.p50"));
        assert!(!only.reports("http.c64.p50") && !only.reports("pp1k.p50") && !only.reports("idle.rss_kb"));
    }

    #[test]
    fn c1_is_not_c16() {
        let only = selection(&["http.c1"]).unwrap();
        assert!(only.runs("c1") && !only.runs("c16"));
        assert!(only.reports("http.c1.p50") && !only.reports("http.c16.p50"));
    }

    #[test]
    fn nothing_selected_is_everything_and_nonsense_is_refused_by_name() {
        let all = selection(&[]).unwrap();
        assert!(SUITES.iter().all(|suite| all.runs(suite)) && all.reports("procs"));
        assert!(selection(&["c65"]).err().unwrap().to_string().contains("c65"));
        assert!(selection(&["idle.rss_kb", "hold.kb_conn"]).is_ok());
    }
}
