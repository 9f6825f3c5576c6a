//! What the tests on a cluster run in pods: a server, a client that never stops, a client that asks once. It speaks plain
//! HTTP/1.1, needs no name service, and ends with a code.
#![allow(clippy::disallowed_methods, reason = "a program that calls at a pace; nothing is tested by waiting")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use serde_json::json;

/// How long anything of a request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The connection was refused, reset or closed before an answer.
const REFUSED: u8 = 3;
/// No answer in time.
const SILENT: u8 = 4;

/// Programs for pods of the tests on a cluster
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer every request with who asked
    Serve {
        /// Port to listen on, at all addresses
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Ask again and again, by new connections and by one that stays, and say every second how it went
    Load {
        /// The server
        #[arg(long)]
        to: SocketAddr,
        /// Time between two requests by new connections, in milliseconds
        #[arg(long, default_value_t = 20)]
        every: u64,
    },
    /// Ask once and print the answer; exit code 3: refused, 4: no answer in time
    Get {
        /// The server
        #[arg(long)]
        to: SocketAddr,
        /// Path of the request
        #[arg(long, default_value = "/")]
        path: String,
    },
    /// Connect and go; exit codes as of get
    Connect {
        /// The server
        #[arg(long)]
        to: SocketAddr,
    },
    /// Print what is in folders, and what of it should not be: exit code 1 if there is anything
    Absent {
        /// Files and folders that should not be there
        paths: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Serve { port } => serve(port),
        Command::Load { to, every } => load(to, Duration::from_millis(every)),
        Command::Get { to, path } => get(to, &path),
        Command::Connect { to } => TcpStream::connect_timeout(&to, PATIENCE).map(drop).map_err(Into::into),
        Command::Absent { paths } => absent(&paths),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            ExitCode::from(code(&error))
        }
    }
}

fn code(error: &anyhow::Error) -> u8 {
    use std::io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, PermissionDenied, TimedOut, UnexpectedEof,
        WouldBlock,
    };
    match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(
            BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset | PermissionDenied | UnexpectedEof,
        ) => REFUSED,
        Some(TimedOut | WouldBlock) => SILENT,
        _ => 1,
    }
}

fn serve(port: u16) -> Result<()> {
    let listener =
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    println!("{}", json!({"serving": listener.local_addr()?.to_string()}));
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        thread::spawn(move || answer(stream));
    }
    Ok(())
}

/// Answers the requests of a connection until it ends.
fn answer(stream: TcpStream) -> Result<()> {
    let peer = stream.peer_addr()?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while read_head(&mut reader)?.is_some() {
        let body = json!({"peer": peer.ip().to_canonical().to_string()}).to_string();
        write!(writer, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    }
    Ok(())
}

/// First line and length of the body; none at the end of the connection.
fn read_head(reader: &mut impl BufRead) -> Result<Option<(String, Option<usize>)>> {
    let (mut first, mut length) = (String::new(), None);
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(Some((first.trim_end().to_owned(), length)));
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim().parse()?);
        }
    }
}

/// A connection for requests.
struct Connection {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
    host: SocketAddr,
}

impl Connection {
    fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream.try_clone()?), writer: stream, host: to })
    }

    fn ask(&mut self, path: &str) -> Result<String> {
        write!(self.writer, "GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.host)?;
        let head = read_head(&mut self.reader)?;
        let (first, length) = head.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
        let mut body = vec![0; length.context("an answer without a length")?];
        self.reader.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        if !first.contains(" 200 ") {
            bail!("{first}: {body}");
        }
        Ok(body)
    }
}

fn get(to: SocketAddr, path: &str) -> Result<()> {
    println!("{}", Connection::open(to)?.ask(path)?);
    Ok(())
}

/// What has happened so far.
#[derive(Default)]
struct Counts {
    ok: AtomicU64,
    failed: AtomicU64,
    /// Requests by the connection that stays, and how often it had to be opened again.
    kept: AtomicU64,
    reopened: AtomicU64,
    last_error: Mutex<String>,
}

impl Counts {
    fn failed(&self, error: &anyhow::Error) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = format!("{error:#}");
    }
}

fn load(to: SocketAddr, every: Duration) -> Result<()> {
    let counts = Arc::new(Counts::default());
    let kept = Arc::clone(&counts);
    thread::spawn(move || keep_one(to, every, &kept));
    let reported = Arc::clone(&counts);
    thread::spawn(move || report(&reported));
    loop {
        let begun = Instant::now();
        match Connection::open(to).and_then(|mut connection| connection.ask("/")) {
            Ok(_) => counts.ok.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                counts.failed(&error);
                counts.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
        thread::sleep(every.saturating_sub(begun.elapsed()));
    }
}

fn keep_one(to: SocketAddr, every: Duration, counts: &Counts) {
    loop {
        let outcome = Connection::open(to).and_then(|mut connection| -> Result<()> {
            loop {
                connection.ask("/kept")?;
                counts.kept.fetch_add(1, Ordering::Relaxed);
                thread::sleep(every);
            }
        });
        if let Err(error) = outcome {
            counts.failed(&error);
        }
        counts.reopened.fetch_add(1, Ordering::Relaxed);
        thread::sleep(every);
    }
}

fn report(counts: &Counts) {
    loop {
        thread::sleep(Duration::from_secs(1));
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let line = json!({
            "ok": read(&counts.ok), "failed": read(&counts.failed), "kept": read(&counts.kept),
            "reopened": read(&counts.reopened),
            "last_error": *counts.last_error.lock().unwrap_or_else(PoisonError::into_inner),
        });
        println!("{line}");
    }
}

fn absent(paths: &[PathBuf]) -> Result<()> {
    let mut there = Vec::new();
    for path in paths {
        let Ok(data) = std::fs::symlink_metadata(path) else { continue };
        there.push(path.display().to_string());
        if data.is_dir() {
            let entries = std::fs::read_dir(path)?.flatten();
            there.extend(entries.map(|entry| entry.path().display().to_string()));
        }
    }
    if there.is_empty() { Ok(()) } else { bail!("still there: {}", there.join(" ")) }
}
