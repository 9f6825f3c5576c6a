//! The commands. Exit codes: 0 well, 1 failed or unhealthy, 2 no agent answers, 64 wrong usage.

mod authority;
mod ca;
mod check;
mod cleanup;
mod cluster;
mod container;
mod duration;
mod explain;
mod host;
pub mod logging;
mod output;
mod policy;
mod run;
mod source;
mod status;
mod toggle;

use std::{
    ffi::OsStr,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

/// Unhealthy, or the command failed.
const FAILED: u8 = 1;
/// No agent answers.
const NO_AGENT: u8 = 2;
/// Wrong usage, as sysexits.h has it: 2 is taken.
const USAGE: u8 = 64;

const EXAMPLES: &str = "\
Examples:
  mesh-agent check                                   what this machine lacks, and how to get it
  mesh-agent run --manifests /etc/mesh-agent/manifests
  mesh-agent status                                  is it healthy, what does each pod do
  mesh-agent status --cluster                        the same of all nodes, by a kubeconfig; also: kubectl mesh status
  mesh-agent policy audit                            what crossed this node's edge in plaintext
  mesh-agent explain netns_missing                   what a reason code means

Exit codes: 0 well, 1 failed or unhealthy, 2 no agent answers, 64 wrong usage.
Every option of `run` can be given by the environment variable named with it.";

/// A service mesh data plane: one agent per node, eBPF capture, one shared proxy.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of this node.
    Run(Box<run::Args>),
    /// Serve certificates to the agents of other nodes, by the API of Istio's authority.
    Ca(Box<ca::Args>),
    /// Show what the running agent does: hooks, workers, namespaces, pods, problems.
    Status(status::Args),
    /// Enrol namespaces of a cluster, wait until every pod confirms, go back when it gets worse.
    Enable(Box<toggle::EnableArgs>),
    /// Take namespaces of a cluster out of the mesh.
    Disable(Box<toggle::DisableArgs>),
    /// Check whether this machine can run the agent; every lack comes with its remedy.
    Check(check::Args),
    /// Remove everything an agent left on this node: pins (and so the hooks), socket, lock.
    Cleanup(cleanup::Args),
    /// Mount a bpffs where there is none: an init container of the DaemonSet.
    #[command(hide = true)]
    MountBpffs(container::MountArgs),
    /// Say whether the agent of this container is in charge: the readiness probe of the DaemonSet.
    #[command(hide = true)]
    Probe(container::ProbeArgs),
    /// Explain what is allowed, report what went in plaintext, show certificates.
    Policy(policy::Args),
    /// Explain a reason code, or list all of them.
    Explain(explain::Args),
}

/// The run folder.
#[derive(Clone, Debug, Args)]
struct RunDir {
    /// Folder of the agent's socket and lock
    #[arg(long, value_name = "DIR", default_value = "/run/mesh-agent", env = "MESH_AGENT_RUN_DIR")]
    run_dir: PathBuf,
}

/// The bpffs mount.
#[derive(Clone, Debug, Args)]
struct Bpffs {
    /// Where bpffs is mounted
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf", env = "MESH_AGENT_BPFFS")]
    bpffs: PathBuf,
}

/// The cgroup v2 mount.
#[derive(Clone, Debug, Args)]
struct Cgroup {
    /// Root of the cgroup v2 tree [default: where it is mounted]
    #[arg(long, value_name = "DIR", env = "MESH_AGENT_CGROUP")]
    cgroup: Option<PathBuf>,
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _closed = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let done = match for_cluster(cli.command, is_plugin(std::env::args_os().next().as_deref())) {
        Command::Run(args) => run::run(*args).map(|()| 0),
        Command::Ca(args) => ca::run(&args).map(|()| 0),
        Command::Status(args) => status::run(&args),
        Command::Enable(args) => toggle::enable(*args),
        Command::Disable(args) => toggle::disable(*args),
        Command::Check(args) => check::run(&args),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::MountBpffs(args) => container::mount_bpffs(&args),
        Command::Probe(args) => container::probe(&args),
        Command::Policy(args) => policy::run(&args),
        Command::Explain(args) => explain::run(&args),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // What the options say each is well, and together not.
            if let Some(usage) = error.downcast_ref::<clap::Error>() {
                let _closed = usage.print();
                return ExitCode::from(USAGE);
            }
            let _closed = writeln!(io::stderr(), "mesh-agent: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// Whether it was called as a plug-in of kubectl, by the name that makes `kubectl mesh` of it.
fn is_plugin(called: Option<&OsStr>) -> bool {
    let name = called.map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| name.to_string_lossy().starts_with("kubectl-mesh"))
}

/// As a plug-in, the status is that of the cluster.
fn for_cluster(mut command: Command, is_plugin: bool) -> Command {
    if let Command::Status(args) = &mut command {
        args.cluster |= is_plugin;
    }
    command
}

/// Prints to standard output; a reader that went away (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn as_a_plug_in_of_kubectl_the_status_is_of_the_cluster() {
        assert!(is_plugin(Some(OsStr::new("/usr/local/bin/kubectl-mesh"))));
        assert!(!is_plugin(Some(OsStr::new("/usr/local/bin/mesh-agent"))) && !is_plugin(None));
        for (is_plugin, flag, expected) in [(true, None, true), (false, None, false), (false, Some("--cluster"), true)]
        {
            let cli = Cli::try_parse_from(["x", "status"].into_iter().chain(flag)).unwrap();
            let Command::Status(args) = for_cluster(cli.command, is_plugin) else { unreachable!() };
            assert_eq!(args.cluster, expected);
        }
    }

    #[test]
    fn usage_errors_do_not_look_like_a_missing_agent() {
        let error = Cli::try_parse_from(["mesh-agent", "status", "--watch", "soon"]).unwrap_err().to_string();
        assert!(error.contains("write it like 500ms, 10s or 2m"), "{error}");
        assert_ne!(USAGE, NO_AGENT);
    }
}
