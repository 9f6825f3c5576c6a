//! Processes in namespaces, with a log each, stopped on drop, and by the kernel if we are killed.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    accounts::{Accounts, Role},
    interrupt, network, pause,
};

/// How a process is to be started.
#[derive(Clone, Copy)]
pub(crate) struct Launch<'a> {
    /// In which network namespace.
    pub(crate) netns: &'a str,
    /// Whom its CPU time is charged to.
    pub(crate) account: (&'a Accounts, Role),
    /// The one CPU it may use.
    pub(crate) pin: Option<u32>,
    /// Its group id, to be told apart by firewall rules.
    pub(crate) gid: Option<u32>,
    /// What it gets when we die.
    pub(crate) at_our_death: Signal,
}

impl<'a> Launch<'a> {
    /// In a namespace, charged to a role.
    pub(crate) fn new(netns: &'a str, accounts: &'a Accounts, role: Role, pin: Option<u32>) -> Self {
        Self { netns, account: (accounts, role), pin, gid: None, at_our_death: Signal::SIGKILL }
    }

    /// The command line. Each program of the chain replaces the one before: the process id is the last one's.
    pub(crate) fn command(&self, program: &Path) -> Command {
        const ENTER: &str = r#"while [ "$1" != -- ]; do echo $$ > "$1" || exit 125; shift; done; shift; exec "$@""#;
        let mut command = Command::new("sh");
        command.args(["-c", ENTER, "sh"]).args(self.account.0.doors(self.account.1)).arg("--");
        if let Some(cpu) = self.pin {
            command.args(["taskset", "-c", &cpu.to_string()]);
        }
        command.arg("nsenter").arg(format!("--net={}", network::path(self.netns).display())).arg("--");
        command.arg("setpriv");
        if let Some(gid) = self.gid {
            command.args(["--regid", &gid.to_string(), "--clear-groups"]);
        }
        command.args(["--pdeathsig", self.at_our_death.as_str().trim_start_matches("SIG"), "--"]).arg(program);
        // Ctrl-C is for us; we stop the others in order.
        command.process_group(0).stdin(Stdio::null());
        command
    }

    /// Starts a server whose output goes to `log`.
    ///
    /// # Errors
    /// It can't be started.
    pub(crate) fn start<S: AsRef<OsStr>>(
        &self,
        program: &Path,
        args: impl IntoIterator<Item = S>,
        log: PathBuf,
    ) -> Result<Process> {
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = self.command(program);
        command.args(args).stdout(file.try_clone()?).stderr(file);
        let child = interrupt::spawn(&mut command).with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Process { child, log })
    }
}

/// A process of ours.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Its id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// It is not ours.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// What it has written so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of that, for messages.
    pub(crate) fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().rev().take(8).collect();
        let shown: Vec<_> = lines.into_iter().rev().collect();
        format!("{}:\n{}", self.log.display(), shown.join("\n"))
    }

    /// Asks it to end, and makes it after `patience`.
    pub(crate) fn stop(&mut self, patience: Duration) {
        stop(&mut self.child, patience);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(2));
    }
}

/// Asks a child to end, and makes it after `patience`.
pub(crate) fn stop(child: &mut Child, patience: Duration) {
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    let _gone = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
    let until = Instant::now() + patience;
    while Instant::now() < until {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        pause(Duration::from_millis(5));
    }
    let _gone = child.kill();
    let _reaped = child.wait();
}
