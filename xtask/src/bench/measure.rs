//! One measurement: a client's run, what it cost in CPU by role, and how disturbed the machine was meanwhile.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

use super::rig::Rig;
use crate::lab::{
    accounts::{Role, Spent},
    load::{self, Answer},
    rest,
};

/// What came out.
pub(super) struct Measured {
    /// What the client says.
    pub(super) answer: Answer,
    /// CPU of each role.
    cpu: [Spent; Role::ALL.len()],
    /// How long it took, with the warm-up.
    wall: f64,
    /// Whether an API server shared the machine.
    pub(super) is_large: bool,
    /// CPUs used by others, the hypervisor included.
    pub(super) noise: f64,
}

impl Measured {
    /// CPU time of a role.
    pub(super) fn cpu(&self, role: Role) -> Duration {
        self.spent(role).total
    }

    /// CPU time of all that a request meets.
    pub(super) fn cpu_total(&self) -> Duration {
        Role::PATH.iter().map(|&role| self.cpu(role)).sum()
    }

    /// CPUs that a role used on average.
    pub(super) fn cores(&self, role: Role) -> f64 {
        self.cpu(role).as_secs_f64() / self.wall
    }

    /// Share of the proxies' CPU time that was spent in the kernel, if they had any.
    pub(super) fn kernel_share(&self) -> Option<f64> {
        let Spent { user, system, .. } = self.spent(Role::Proxy);
        let sum = (user + system).as_secs_f64();
        (sum > 0.0).then(|| system.as_secs_f64() / sum)
    }

    fn spent(&self, role: Role) -> Spent {
        Role::ALL
            .iter()
            .zip(self.cpu)
            .find(|(other, _)| **other == role)
            .map_or_else(Spent::default, |(_, spent)| spent)
    }
}

/// Runs the client in `netns` until a run was quiet, and returns the quietest one.
///
/// # Errors
/// The last run failed, and none before it was well.
pub(super) fn measure(rig: &Rig, netns: &str, args: &[String]) -> Result<Measured> {
    let mut best: Option<Measured> = None;
    for attempt in 1..=rig.tries.max(1) {
        if attempt > 1 {
            rest(Duration::from_secs(1))?;
        }
        match once(rig, netns, args) {
            Ok(measured) => {
                let quiet = measured.noise < rig.noise;
                if best.as_ref().is_none_or(|best| measured.noise < best.noise) {
                    best = Some(measured);
                }
                if quiet {
                    break;
                }
            }
            Err(error) if attempt >= rig.tries && best.is_none() => {
                return Err(error).with_context(|| format!("mesh-load {}", args.join(" ")));
            }
            Err(error) => {
                crate::lab::interrupt::check()?;
                eprintln!("  failed, and tried again: {error:#}");
            }
        }
    }
    best.context("no measurement")
}

fn once(rig: &Rig, netns: &str, args: &[String]) -> Result<Measured> {
    let before = Moment::now(rig)?;
    let patience = rig.length + Duration::from_secs(30);
    let answer = load::measure(&rig.launch(netns, Role::Client), &rig.tool, args, patience)?;
    let after = Moment::now(rig)?;
    Ok(after.since(&before, answer, rig.accounts.is_used(Role::Cluster)))
}

/// What all roles spend while nothing is asked of them, for the length of a measurement.
///
/// # Errors
/// The kernel's files don't look as expected; ctrl-C.
pub(super) fn quiet(rig: &Rig) -> Result<Measured> {
    let before = Moment::now(rig)?;
    rest(rig.length)?;
    Ok(Moment::now(rig)?.since(&before, Answer::default(), true))
}

struct Moment {
    at: Instant,
    spent: [Spent; Role::ALL.len()],
    /// CPU seconds that the machine was busy.
    busy: f64,
    /// CPU seconds that the hypervisor gave to others.
    stolen: f64,
}

impl Moment {
    fn now(rig: &Rig) -> Result<Self> {
        let mut spent = [Spent::default(); Role::ALL.len()];
        for (spent, role) in spent.iter_mut().zip(Role::ALL) {
            *spent = rig.accounts.spent(role)?;
        }
        let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let (busy, stolen) = machine_time(&stat).context("/proc/stat does not begin with cpu times")?;
        let tick = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100) as f64;
        Ok(Self { at: Instant::now(), spent, busy: busy as f64 / tick, stolen: stolen as f64 / tick })
    }

    fn since(&self, before: &Self, answer: Answer, is_large: bool) -> Measured {
        let mut cpu = [Spent::default(); Role::ALL.len()];
        for (spent, (before, after)) in cpu.iter_mut().zip(before.spent.into_iter().zip(self.spent)) {
            *spent = Spent {
                total: after.total.saturating_sub(before.total),
                user: after.user.saturating_sub(before.user),
                system: after.system.saturating_sub(before.system),
            };
        }
        let wall = self.at.duration_since(before.at).as_secs_f64();
        let ours: f64 = cpu.iter().map(|spent| spent.total.as_secs_f64()).sum();
        // The two clocks differ by a tick or two, so a quiet machine can come out below zero.
        let others = (self.busy - before.busy - ours).max(0.0);
        Measured { answer, cpu, wall, is_large, noise: (others + self.stolen - before.stolen) / wall }
    }
}

/// Ticks that all CPUs together were busy, and that were stolen.
fn machine_time(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    match ticks.as_slice() {
        [user, nice, system, _idle, _iowait, irq, softirq, stolen, ..] => {
            Some((user + nice + system + irq + softirq, *stolen))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_are_not_busy() {
        assert_eq!(machine_time("cpu  1 2 4 1000 1000 8 16 32 64 128\ncpu0 1\n"), Some((31, 32)));
        assert_eq!(machine_time("cpu0 1 2\n"), None);
    }
}
