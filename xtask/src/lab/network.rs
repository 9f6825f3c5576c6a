//! Nodes and pods as network namespaces: a node is a bridge, its pods are joined to it by veth pairs, two nodes to each
//! other by one more. Nothing of the machine's own network is touched.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::command::{command, output};

/// For tens of thousands of connections between two addresses, and for results that do not depend on the machine's
/// settings. A file that a kernel lacks is skipped.
const SETTINGS: [(&str, &str); 11] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/tcp_congestion_control", "reno"),
    ("ipv4/ip_local_port_range", "10240 65535"),
    ("ipv4/tcp_tw_reuse", "1"),
    ("ipv4/tcp_max_tw_buckets", "262144"),
    ("ipv4/tcp_max_syn_backlog", "8192"),
    ("core/somaxconn", "8192"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
];

/// Namespaces with a common prefix. Removed on drop.
pub(crate) struct Network {
    prefix: String,
    names: Vec<String>,
}

impl Network {
    /// None yet.
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), names: Vec::new() }
    }

    /// A namespace's full name.
    pub(crate) fn name(&self, short: &str) -> String {
        format!("{}-{short}", self.prefix)
    }

    /// A node whose pods have addresses in the /24 of `gateway`.
    ///
    /// # Errors
    /// `ip` fails.
    pub(crate) fn node(&mut self, short: &str, gateway: Ipv4Addr) -> Result<()> {
        let name = self.namespace(short)?;
        ip(&name, &format!("link add br0 type bridge\naddr add {gateway}/24 dev br0\nlink set br0 up\n"))
    }

    /// A pod on `node`.
    ///
    /// # Errors
    /// `ip` fails.
    pub(crate) fn pod(&mut self, short: &str, node: &str, address: Ipv4Addr, gateway: Ipv4Addr) -> Result<()> {
        let (name, node) = (self.namespace(short)?, self.name(node));
        ip(
            &node,
            &format!(
                "link add v-{short} type veth peer name eth0 netns {name}\nlink set v-{short} master br0\nlink set v-{short} up\n"
            ),
        )?;
        ip(&name, &format!("addr add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"))
    }

    /// Joins two nodes: each with its end's address and the other's pods.
    ///
    /// # Errors
    /// `ip` fails.
    pub(crate) fn join(&self, one: (&str, Ipv4Addr, &str), two: (&str, Ipv4Addr, &str)) -> Result<()> {
        let far = self.name(two.0);
        ip(&self.name(one.0), &format!("link add up0 type veth peer name up0 netns {far}\n"))?;
        for (here, there) in [(one, two), (two, one)] {
            let (near, far) = (here.1, there.1);
            let pods = there.2;
            ip(
                &self.name(here.0),
                &format!("addr add {near}/30 dev up0\nlink set up0 up\nroute add {pods} via {far}\n"),
            )?;
        }
        Ok(())
    }

    fn namespace(&mut self, short: &str) -> Result<String> {
        let name = self.name(short);
        // A run that was killed left it.
        let _absent = command("ip", &["netns", "del", &name]).stderr(Stdio::null()).status();
        output(&mut command("ip", &["netns", "add", &name]))?;
        self.names.push(name.clone());
        ip(&name, "link set lo up\n")?;
        let mut script = String::new();
        for (file, value) in SETTINGS {
            let _infallible = writeln!(script, "echo '{value}' > /proc/sys/net/{file}");
        }
        let mut shell = inside(&name);
        shell.args(["sh", "-c", &script]).stderr(Stdio::null()).status().context("nsenter")?;
        Ok(name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.names.iter().rev() {
            if let Err(error) = output(&mut command("ip", &["netns", "del", name])) {
                eprintln!("left behind: network namespace {name}: {error:#}");
            }
        }
    }
}

/// A command in the namespace. Only the network is another: `ip netns exec` would also mount /sys anew, and cgroups and
/// bpffs would be gone.
pub(crate) fn inside(netns: &str) -> Command {
    command("nsenter", &[&format!("--net={}", path(netns).display()), "--"])
}

/// Where the namespace is.
pub(crate) fn path(netns: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(netns)
}

fn ip(netns: &str, batch: &str) -> Result<()> {
    let mut child = command("ip", &["-n", netns, "-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("ip (package iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes())?;
    }
    let done = child.wait_with_output()?;
    if !done.status.success() {
        bail!("ip -n {netns}: {}\n{batch}", String::from_utf8_lossy(&done.stderr).trim_end());
    }
    Ok(())
}
