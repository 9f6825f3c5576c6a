//! How long it takes from a change at the API server to a pod's next connection: the only endpoint of a service moves to
//! and fro between two pods, while a third connects all the time and hears who answers.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use mesh_agent::net::netns::Netns;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    client::{Client, path_of},
    tally::Tally,
};

/// What a change may take before it counts as lost.
const LOST: Duration = Duration::from_secs(5);
/// After so many lost ones there is nothing to be learnt from more.
const MOST_LOST: u64 = 10;
/// What one connection may take.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder that the API server has written to
    #[arg(long)]
    directory: PathBuf,
    /// Network namespace of the pod that connects
    #[arg(long)]
    client: PathBuf,
    /// The two pods that answer, as NAMESPACE-FILE=ADDRESS
    #[arg(long = "server", required = true)]
    servers: Vec<Server>,
    /// Address and port of the service, which is that of the pods too
    #[arg(long)]
    service: SocketAddr,
    /// Name of its EndpointSlice
    #[arg(long)]
    slice: String,
    /// How often to move it
    #[arg(long, default_value_t = 300)]
    flips: u32,
    /// Between the end of a connection and the next one
    #[arg(long, default_value_t = 500)]
    pause_us: u64,
}

/// A pod that answers.
#[derive(Clone)]
struct Server {
    netns: PathBuf,
    address: IpAddr,
}

impl FromStr for Server {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (netns, address) = text.split_once('=').context("NAMESPACE-FILE=ADDRESS")?;
        Ok(Self { netns: netns.into(), address: address.parse()? })
    }
}

/// What the client has to tell: not every connection, only what is new.
struct Event {
    at: Instant,
    /// Which server answers now, or why none did.
    answer: Result<u8, io::Error>,
}

/// What is found out.
#[derive(Default)]
struct Findings {
    total: Tally,
    requests: Tally,
    /// An answer of the former endpoint after the first of the new one.
    back: u64,
    lost: u64,
    failed: u64,
    first_error: Option<String>,
}

/// Runs it, and prints one line of JSON.
///
/// # Errors
/// Something is not there. What goes wrong with connections is counted.
pub(crate) async fn run(args: Args) -> Result<()> {
    if args.servers.len() != 2 {
        bail!("--server must be given twice");
    }
    for (number, server) in (0u8..).zip(&args.servers) {
        let at = SocketAddr::new(server.address, args.service.port());
        let listener = Netns::open(&server.netns)?.run(|| TcpListener::bind(at))?;
        thread::spawn(move || answer(&listener, number));
    }
    let mut client = Client::connect(&args.directory).await?;
    let named = |slice: &Value| slice.pointer("/metadata/name").is_some_and(|name| *name == *args.slice);
    let mut slice = client.slices().await?.into_iter().find(named).context("there is no such slice")?;
    let path = path_of(&slice)?;
    let (tell, mut events) = mpsc::unbounded_channel();
    let connections = Arc::new(AtomicU64::new(0));
    let netns = Netns::open(&args.client)?;
    let (service, pause, counted) = (args.service, Duration::from_micros(args.pause_us), Arc::clone(&connections));
    thread::spawn(move || connect(&netns, service, pause, &tell, &counted));

    let mut findings = Findings::default();
    for number in 0..=args.flips {
        let (index, server) = if number % 2 == 0 { (0, args.servers.first()) } else { (1, args.servers.get(1)) };
        let address = server.context("two servers")?.address;
        let endpoint = slice.pointer_mut("/endpoints/0").context("the slice has no endpoint")?;
        endpoint.as_object_mut().context("an endpoint")?.insert("addresses".into(), json!([address]));
        let object = serde_json::to_vec(&slice)?;
        let start = Instant::now();
        client.replace(&path, object.into()).await?;
        let asked = start.elapsed();
        let seen = findings.await_answer(&mut events, index, start).await?;
        // The first one only brings about a known state.
        if number > 0 {
            findings.requests.add(asked);
            match seen {
                Some(length) => findings.total.add(length),
                None => findings.lost += 1,
            }
        }
        if findings.lost >= MOST_LOST {
            break;
        }
        // Not in step with anything, and long enough for the former endpoint to be heard of again.
        tokio::time::sleep(Duration::from_micros(30_000 + u64::from(number) * 7919 % 23_000)).await;
        findings.listen(&mut events, index);
    }
    findings.tell(connections.load(Ordering::Relaxed))
}

impl Findings {
    /// Time until the server with that number answers.
    async fn await_answer(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<Event>,
        wanted: u8,
        start: Instant,
    ) -> Result<Option<Duration>> {
        loop {
            let left = LOST.saturating_sub(start.elapsed());
            let Ok(event) = tokio::time::timeout(left, events.recv()).await else { return Ok(None) };
            let event = event.context("the thread that connects has ended")?;
            match event.answer {
                Ok(answer) if answer == wanted => return Ok(Some(event.at.saturating_duration_since(start))),
                Ok(_) => {}
                Err(error) => self.fail(&error),
            }
        }
    }

    /// What has come since.
    fn listen(&mut self, events: &mut mpsc::UnboundedReceiver<Event>, wanted: u8) {
        while let Ok(event) = events.try_recv() {
            match event.answer {
                Ok(answer) => self.back += u64::from(answer != wanted),
                Err(error) => self.fail(&error),
            }
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.failed += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }

    fn tell(mut self, connections: u64) -> Result<()> {
        let line = json!({
            "moved": self.total.count(), "lost": self.lost, "back": self.back, "connections": connections, "failed": self.failed,
            "first_error": self.first_error, "total_us": self.total.summary(), "request_us": self.requests.summary(),
        });
        writeln!(io::stdout(), "{line}").context("standard output")
    }
}

/// A server: who connects is told its number.
fn answer(listener: &TcpListener, number: u8) {
    loop {
        if let Ok((mut stream, _)) = listener.accept() {
            // The client may be gone.
            let _ = stream.write_all(&[number]);
        }
    }
}

/// The client: connects again and again, until nobody listens to what it tells.
fn connect(
    netns: &Netns,
    service: SocketAddr,
    pause: Duration,
    tell: &mpsc::UnboundedSender<Event>,
    count: &AtomicU64,
) {
    let mut last = None;
    if let Err(error) = netns.enter() {
        let _ = tell.send(Event { at: Instant::now(), answer: Err(error) });
        return;
    }
    loop {
        let answer = ask(service);
        count.fetch_add(1, Ordering::Relaxed);
        let heard = answer.as_ref().ok().copied();
        let news = heard.is_none() || heard != last;
        last = heard.or(last);
        if news && tell.send(Event { at: Instant::now(), answer }).is_err() {
            return;
        }
        thread::sleep(pause);
    }
}

fn ask(service: SocketAddr) -> io::Result<u8> {
    let mut stream = TcpStream::connect_timeout(&service, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    let [number] = byte;
    Ok(number)
}
