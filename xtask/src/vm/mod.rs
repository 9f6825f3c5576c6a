//! The kernel tier on other kernels: Debian's, in QEMU without hardware virtualisation, which hosts of build machines
//! rarely lend. The guest is one initramfs: its kernel's modules, busybox, the agent, the tests and their libraries.

mod cpio;
mod guest;
mod kernel;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

pub(crate) use kernel::Kernel;

use crate::{command::show, ebpf, test::Count};

/// Longest time a guest may take, boot to power-off; emulation makes it some ten times slower than its host.
const DEADLINE: Duration = Duration::from_mins(20);

/// What the guest is to run.
pub(crate) struct Payload<'a> {
    /// The agent's binary.
    pub(crate) agent: &'a Path,
    /// Names and paths of the test programs.
    pub(crate) tests: &'a [(String, String)],
    /// Only tests with this in their names.
    pub(crate) filter: Option<&'a str>,
}

/// Boots a kernel, runs the test programs one after the other and counts what they say.
///
/// # Errors
/// A program is missing on this machine, the guest did not come to its end in time, or a test failed.
pub(crate) fn run(kernel: Kernel, payload: &Payload<'_>, count: &mut Count) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the guests are x86_64 only");
    }
    let cache = ebpf::cache()?.join("kernels");
    let unpacked = kernel.unpack(&cache)?;
    let scratch = Scratch::new(&cache)?;
    let initramfs = scratch.0.join("initramfs.cpio");
    guest::write(&unpacked, payload, &scratch.0, &initramfs)?;

    let mut verdict = Verdict::default();
    let mut qemu = qemu(&unpacked.image, &initramfs);
    let in_time = watch(&mut qemu, |line| {
        println!("{line}");
        count.line(line);
        verdict.line(line);
    })?;
    if !in_time {
        bail!("the guest did not finish within {} s", DEADLINE.as_secs());
    }
    verdict.check(payload.tests.len())
}

fn qemu(image: &Path, initramfs: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initramfs);
    qemu
}

/// Runs a program and hands over its lines. Returns false if it had to be ended at the deadline.
fn watch(command: &mut Command, mut each: impl FnMut(&str)) -> Result<bool> {
    let until = Instant::now() + DEADLINE;
    let shown = show(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}; ./xtask/run test --vm installs it"))?;
    let serial = child.stdout.take().context("no standard output")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(serial).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => each(&line),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                child.kill()?;
                child.wait()?;
                return Ok(false);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = child.wait()?;
                return if status.success() { Ok(true) } else { bail!("{shown}: {status}") };
            }
        }
    }
}

/// What the guest's own lines say: `MESH-VM exit CODE PROGRAM` for each program, `MESH-VM done` at the end.
#[derive(Default)]
struct Verdict {
    exits: usize,
    failed: Vec<String>,
    done: bool,
}

impl Verdict {
    fn line(&mut self, line: &str) {
        // Programs may have left an unfinished line in front.
        let Some((_, words)) = line.split_once("MESH-VM ") else { return };
        match words.split(' ').collect::<Vec<_>>().as_slice() {
            ["exit", code, program] => {
                self.exits += 1;
                if *code != "0" {
                    self.failed.push(format!("{program} (exit code {code})"));
                }
            }
            ["done"] => self.done = true,
            _ => {}
        }
    }

    fn check(&self, programs: usize) -> Result<()> {
        if !self.failed.is_empty() {
            bail!("failed in the guest: {}", self.failed.join(", "));
        }
        if !self.done || self.exits != programs {
            bail!("the guest ended early, after {} of {programs} test programs", self.exits);
        }
        Ok(())
    }
}

/// A folder that goes away with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new(cache: &Path) -> Result<Self> {
        let folder = cache.join(format!("scratch-{}", std::process::id()));
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(lines: &[&str]) -> Verdict {
        let mut verdict = Verdict::default();
        for line in lines {
            verdict.line(line);
        }
        verdict
    }

    #[test]
    fn all_programs_must_end_well() {
        let good =
            ["MESH-VM up 6.1.0", "MESH-VM exit 0 kernel_a", "half a line MESH-VM exit 0 kernel_b", "MESH-VM done"];
        assert!(verdict(&good).check(2).is_ok());
        assert!(verdict(&good).check(3).is_err());
    }

    #[test]
    fn a_failed_program_or_a_panic_of_the_kernel_fails_the_run() {
        let failed = verdict(&["MESH-VM exit 101 kernel_a", "MESH-VM done"]).check(1).unwrap_err();
        assert!(failed.to_string().contains("kernel_a"), "{failed}");
        let early = verdict(&["MESH-VM exit 0 kernel_a", "Kernel panic - not syncing"]).check(2).unwrap_err();
        assert!(early.to_string().contains("1 of 2"), "{early}");
    }
}
