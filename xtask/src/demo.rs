//! `cargo xtask demo`: two pods, a web server and a service that speaks first, load on both, and the mesh switched on
//! and off under it.

use std::{
    fmt::Write,
    net::Ipv4Addr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    bench::report::align,
    lab::{
        self, Workspace,
        accounts::{Accounts, Role},
        agent::{Agent, DISABLED, ENABLED, NODE, Source},
        interrupt,
        load::{self, Answer, Client},
        manifests::{Manifests, Pod},
        network::Network,
        poll,
        process::{Launch, Process},
    },
};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 3);
const HTTP: u16 = 8080;
const GREETER: u16 = 2525;
/// The namespace of both pods.
const NAMESPACE: &str = "shop";
const PATIENCE: Duration = Duration::from_secs(20);

/// Options of the demo.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often the namespace is switched on, and off again
    #[arg(long, default_value_t = 3)]
    toggles: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Show this mesh-agent instead of building it
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
}

/// Runs the demo.
///
/// # Errors
/// Something does not start, or a request failed while the mesh was switched.
pub(crate) fn run(args: &Args) -> Result<()> {
    let seconds = Duration::try_from_secs_f64(args.seconds).context("--seconds")?;
    lab::require_root("demo")?;
    let binaries = lab::build(&if args.agent.is_none() { vec![lab::AGENT] } else { Vec::new() })?;
    interrupt::watch()?;
    let workspace = Workspace::create("demo")?;
    let agent = args.agent.clone().unwrap_or_else(|| binaries.join("mesh-agent"));
    let accounts = Accounts::create(&format!("mesh-demo-{}", std::process::id()))?;
    let stage = Stage::set(workspace, accounts, binaries.join("mesh-load"), agent)?;

    step("measuring without a mesh");
    let mut costs = vec![("direct", stage.cost(seconds)?)];

    step("starting mesh-agent; the namespace is not enrolled yet");
    let running = stage.agent(true)?;
    running.await_pods(NAMESPACE, &DISABLED)?;
    println!("\nmesh-agent status, before:\n{}", running.table()?);
    let toggled = stage.toggle(&running, args.toggles)?;
    step("measuring in the mesh, connected directly");
    let meshed = stage.cost(seconds)?;
    println!("\nmesh-agent status, after:\n{}", running.table()?);
    costs.push(("meshed, direct", meshed));
    drop(running);

    step("measuring in the mesh, every byte through the agent (--direct=off)");
    let running = stage.agent(false)?;
    running.await_pods(NAMESPACE, &ENABLED)?;
    costs.push(("meshed, relayed", stage.cost(seconds)?));
    drop(running);

    println!("\n{}", cost_table(&costs));
    println!("{}", toggled.sentence());
    toggled.verdict()
}

fn step(what: &str) {
    eprintln!("==> {what}");
}

/// The pods and what runs in them.
struct Stage {
    // Dropped in this order: processes, then what they were in.
    _server: Process,
    network: Network,
    accounts: Accounts,
    manifests: Manifests,
    workspace: Workspace,
    tool: PathBuf,
    agent: PathBuf,
}

impl Stage {
    fn set(workspace: Workspace, accounts: Accounts, tool: PathBuf, agent: PathBuf) -> Result<Self> {
        step("making a node and two pods, client and server, as network namespaces");
        let mut network = Network::new(&format!("mesh-demo-{}", std::process::id()));
        network.node("node", GATEWAY)?;
        network.pod("client", "node", CLIENT, GATEWAY)?;
        network.pod("server", "node", SERVER, GATEWAY)?;
        let pods = [("client", CLIENT), ("server", SERVER)].map(|(name, address)| Pod {
            name: name.into(),
            netns: network.name(name),
            address,
            node: NODE,
        });
        let manifests = Manifests::create(workspace.path().join("manifests"), NAMESPACE, &pods)?;
        step("starting a web server and a service that speaks first");
        let netns = network.name("server");
        let server = Launch::new(&netns, &accounts, Role::Server, None).start(
            &tool,
            ["serve", "--http", &HTTP.to_string(), "--greeter", &GREETER.to_string()],
            workspace.path().join("server.log"),
        )?;
        let stage = Self { _server: server, network, accounts, manifests, workspace, tool, agent };
        poll("an answer from the web server", PATIENCE, || {
            let answer = stage.load("http", HTTP, &["--seconds", "0.01", "--warm", "0"])?;
            Ok((answer.errors == 0 && answer.total > 0).then_some(()))
        })?;
        Ok(stage)
    }

    fn agent(&self, direct: bool) -> Result<Agent> {
        let netns = self.network.name("node");
        let launch = Launch::new(&netns, &self.accounts, Role::Proxy, None);
        let more = if direct { "--direct=on" } else { "--direct=off" };
        Agent::start(&launch, &self.workspace, self.agent.clone(), NODE, &Source::Manifests(&self.manifests), &[more])
    }

    fn load(&self, mode: &str, port: u16, rest: &[&str]) -> Result<Answer> {
        let netns = self.network.name("client");
        let launch = Launch::new(&netns, &self.accounts, Role::Client, None);
        load::measure(&launch, &self.tool, &arguments(mode, port, rest), PATIENCE)
    }

    /// What a request costs as things are.
    fn cost(&self, length: Duration) -> Result<Cost> {
        let length = length.as_secs_f64().to_string();
        let one = self.load("http", HTTP, &["--seconds", &length])?;
        let before = self.accounts.spent(Role::Proxy)?.total;
        let many = self.load("http", HTTP, &["--seconds", &length, "--connections", "64"])?;
        let agent = self.accounts.spent(Role::Proxy)?.total.saturating_sub(before);
        let new = self.load("http", HTTP, &["--seconds", &length, "--connections", "8", "--close"])?;
        if let Some(error) = one.first_error.or(many.first_error).or(new.first_error) {
            bail!("a request failed while measuring: {error}");
        }
        Ok(Cost {
            p50_us: one.p50_us,
            requests: many.rps,
            connections: new.rps,
            agent_us: agent.as_secs_f64() * 1e6 / many.total.max(1) as f64,
        })
    }

    /// Switches the namespace on and off under load; on at the end.
    fn toggle(&self, agent: &Agent, times: u32) -> Result<Toggled> {
        step("load: kept HTTP connections, a new one per request, and conversations in which the server speaks first");
        let netns = self.network.name("client");
        let launch = Launch::new(&netns, &self.accounts, Role::Client, None);
        let loads = [
            (
                "requests on kept connections",
                arguments("http", HTTP, &["--connections", "16", "--rate", "500", "--warm", "0"]),
            ),
            (
                "requests on new connections",
                arguments("http", HTTP, &["--close", "--connections", "16", "--rate", "300", "--warm", "0"]),
            ),
            (
                "server-first conversations",
                arguments("greet", GREETER, &["--connections", "16", "--rate", "200", "--warm", "0"]),
            ),
        ];
        let mut clients = Vec::new();
        for (what, args) in loads {
            clients.push((what, Client::start(&launch, &self.tool, &args)?));
        }
        lab::rest(Duration::from_millis(500))?;
        let mut toggled = Toggled::default();
        for round in 0..=2 * times {
            let on = round % 2 == 0;
            let start = Instant::now();
            self.manifests.enroll(on)?;
            let took = agent.await_pods(NAMESPACE, if on { &ENABLED } else { &DISABLED })?.duration_since(start);
            eprintln!(
                "    {NAMESPACE} {}: in force after {} ms",
                if on { "enabled " } else { "disabled" },
                took.as_millis()
            );
            toggled.took.push(took);
            let captured = captured(agent)?;
            lab::rest(Duration::from_secs(1))?;
            let more = self::captured(agent)? - captured;
            // A second of load opens some 500 connections; one that was on its way when the switch fell may count still.
            if on != (more > 100) {
                bail!(
                    "the namespace is {}, and {more} connections were captured in a second",
                    if on { "enabled" } else { "disabled" }
                );
            }
        }
        for (what, mut client) in clients {
            client.finish();
            toggled.answers.push((what, client.answer(PATIENCE)?));
        }
        Ok(toggled)
    }
}

fn captured(agent: &Agent) -> Result<i128> {
    let pods = agent.status()?.pods;
    let client =
        pods.iter().find(|pod| pod.name.name == "client").context("pod client is not in the agent's status")?;
    Ok(client.captured.into())
}

fn arguments(mode: &str, port: u16, rest: &[&str]) -> Vec<String> {
    [mode, &format!("{SERVER}:{port}")].iter().chain(rest).map(ToString::to_string).collect()
}

/// What a request costs.
struct Cost {
    /// Latency of one at a time.
    p50_us: f64,
    /// Requests a second over 64 connections.
    requests: f64,
    /// New connections a second, 8 at a time.
    connections: f64,
    /// CPU time of the agent per request, of those over 64 connections.
    agent_us: f64,
}

fn cost_table(costs: &[(&str, Cost)]) -> String {
    let base = costs.first().map(|(_, cost)| cost);
    let ratio = |value: f64, of: fn(&Cost) -> f64| base.map_or(1.0, |base| value / of(base));
    let heading = ["way", "latency p50", "requests/s", "new connections/s", "agent CPU per request"];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    for (way, cost) in costs {
        lines.push(vec![
            (*way).to_owned(),
            format!("{:.0} us ×{:.2}", cost.p50_us, ratio(cost.p50_us, |cost| cost.p50_us)),
            format!("{:.0} ×{:.2}", cost.requests, ratio(cost.requests, |cost| cost.requests)),
            format!("{:.0} ×{:.2}", cost.connections, ratio(cost.connections, |cost| cost.connections)),
            format!("{:.1} us", cost.agent_us),
        ]);
    }
    align(&lines)
}

/// What the switching did.
#[derive(Default)]
struct Toggled {
    took: Vec<Duration>,
    answers: Vec<(&'static str, Answer)>,
}

impl Toggled {
    fn sentence(&self) -> String {
        let slowest = self.took.iter().max().map_or(0, Duration::as_millis);
        let mut text =
            format!("Switched {} times under load, in force within {slowest} ms each time:\n", self.took.len());
        for (what, answer) in &self.answers {
            let slowest = answer.max_us / 1e3;
            let (total, errors) = (answer.total, answer.errors);
            let _infallible = writeln!(text, "  {total:>6} {what}, {errors} failed, slowest {slowest:.1} ms");
        }
        text
    }

    fn verdict(&self) -> Result<()> {
        for (what, answer) in &self.answers {
            if answer.errors > 0 || answer.total == 0 {
                let why = answer.first_error.as_deref().unwrap_or("no load");
                bail!("{what}: {} of {} failed: {why}", answer.errors, answer.total);
            }
        }
        Ok(())
    }
}
