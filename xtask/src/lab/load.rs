//! The load tool as a client: `mesh-load` in a namespace, its line of JSON read back.

use std::{
    io::{BufRead, BufReader, Read},
    os::fd::AsFd,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;

use super::{
    interrupt,
    process::{self, Launch},
};

/// What a client measured. Which fields there are depends on the mode; the others are zero.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    /// Requests, round trips or bytes in all, the warm-up included.
    pub(crate) total: u64,
    /// Those that failed.
    pub(crate) errors: u64,
    /// Why the first did.
    pub(crate) first_error: Option<String>,
    /// Requests a second.
    pub(crate) rps: f64,
    /// Latency, microseconds.
    pub(crate) p50_us: f64,
    /// Latency, microseconds.
    pub(crate) p90_us: f64,
    /// Latency, microseconds.
    pub(crate) p99_us: f64,
    /// Latency, microseconds.
    pub(crate) max_us: f64,
    /// Bytes the sink has read, bits a second.
    pub(crate) gbit_s: f64,
    /// Connections held.
    pub(crate) done: u64,
}

/// A running client.
pub(crate) struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Client {
    /// Starts one.
    ///
    /// # Errors
    /// It can't be started.
    pub(crate) fn start(launch: &Launch<'_>, tool: &Path, args: &[String]) -> Result<Self> {
        let mut command = launch.command(tool);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = interrupt::spawn(&mut command).with_context(|| format!("cannot start {}", tool.display()))?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, stdin, stdout })
    }

    /// Its next line.
    ///
    /// # Errors
    /// None within `patience`, it failed (the message has its standard error), or ctrl-C.
    pub(crate) fn answer(&mut self, patience: Duration) -> Result<Answer> {
        let until = Instant::now() + patience;
        let mut line = String::new();
        loop {
            interrupt::check()?;
            if Instant::now() > until {
                bail!("mesh-load gave no answer within {patience:?}");
            }
            let ready = {
                let mut fds = [PollFd::new(self.stdout.get_ref().as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(200u8))?
            };
            if ready > 0 {
                break;
            }
        }
        self.stdout.read_line(&mut line)?;
        if line.is_empty() {
            let mut said = String::new();
            if let Some(mut stderr) = self.child.stderr.take() {
                stderr.read_to_string(&mut said)?;
            }
            bail!("{}", said.trim_end());
        }
        serde_json::from_str(&line).with_context(|| format!("mesh-load said: {line}"))
    }

    /// Closes its standard input, upon which those that wait for it come to their end.
    pub(crate) fn finish(&mut self) {
        self.stdin = None;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.finish();
        process::stop(&mut self.child, Duration::from_millis(200));
    }
}

/// Runs a client to its end.
///
/// # Errors
/// As [`Client::answer`].
pub(crate) fn measure(launch: &Launch<'_>, tool: &Path, args: &[String], patience: Duration) -> Result<Answer> {
    let mut client = Client::start(launch, tool, args)?;
    let answer = client.answer(patience)?;
    client.child.wait()?;
    Ok(answer)
}
