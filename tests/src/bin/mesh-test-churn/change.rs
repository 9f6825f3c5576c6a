//! A steady rate of changes, each due at a time of its own whether the ones before are answered or not.

use std::{
    cell::RefCell,
    io::Write,
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::LocalSet;

use crate::{
    client::{Client, path_of},
    tally::Tally,
};

/// Says that a service is headless: agents don't watch such slices.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Of a number without common factors with usual numbers of services: neighbours in time are not neighbours by name.
const STRIDE: usize = 7919;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder that the API server has written to
    #[arg(long)]
    directory: PathBuf,
    /// Changes a second
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    /// Connections: as many changes can be under way
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Change as many slices of headless services, made for this: the same work for the API server, and none for agents
    #[arg(long)]
    unwatched: bool,
}

/// A slice whose endpoints become ready and unready.
struct Slice {
    path: String,
    object: Value,
    next: usize,
}

impl Slice {
    /// Turns the next endpoint around, and says what it is now.
    fn turn(&mut self) -> Result<Bytes> {
        let endpoints = self.object.get_mut("endpoints").and_then(Value::as_array_mut).context("no endpoints")?;
        let index = self.next % endpoints.len().max(1);
        self.next += 1;
        let conditions = endpoints.get_mut(index).and_then(|endpoint| endpoint.get_mut("conditions"));
        let ready = conditions.and_then(|conditions| conditions.get_mut("ready")).context("no conditions")?;
        *ready = json!(*ready != json!(true));
        Ok(serde_json::to_vec(&self.object)?.into())
    }
}

/// What happened since the last line.
#[derive(Default)]
struct Second {
    late: Tally,
    answered: Tally,
    failed: u64,
    first_error: Option<String>,
}

/// Runs until the process is ended.
///
/// # Errors
/// The API server does not answer at the beginning. Changes that fail are counted.
pub(crate) async fn run(args: Args) -> Result<()> {
    let slices = Rc::new(RefCell::new(prepare(&args).await?));
    let second = Rc::new(RefCell::new(Second::default()));
    let start = Instant::now() + Duration::from_millis(100);
    let local = LocalSet::new();
    for first in 0..args.connections {
        let mut client = Client::connect(&args.directory).await?;
        let (slices, second) = (Rc::clone(&slices), Rc::clone(&second));
        let (rate, step) = (args.rate, args.connections);
        local.spawn_local(async move {
            for number in (first..).step_by(step) {
                let due = start + Duration::from_secs_f64(number as f64 / rate);
                tokio::time::sleep_until(due.into()).await;
                let late = due.elapsed();
                let outcome = one(&mut client, &slices, number).await;
                let mut second = second.borrow_mut();
                second.late.add(late);
                match outcome {
                    Ok(answered) => second.answered.add(answered),
                    Err(error) => {
                        second.failed += 1;
                        second.first_error.get_or_insert_with(|| format!("{error:#}"));
                    }
                }
            }
        });
    }
    local.run_until(tell(start, &second)).await
}

async fn one(client: &mut Client, slices: &RefCell<Vec<Slice>>, number: usize) -> Result<Duration> {
    let (path, object) = {
        let mut slices = slices.borrow_mut();
        let index = number * STRIDE % slices.len().max(1);
        let slice = slices.get_mut(index).context("no slices")?;
        (slice.path.clone(), slice.turn()?)
    };
    let sent = Instant::now();
    client.replace(&path, object).await?;
    Ok(sent.elapsed())
}

/// A line each second.
async fn tell(start: Instant, second: &RefCell<Second>) -> Result<()> {
    let mut out = std::io::stdout();
    let mut told = start;
    for number in 1.. {
        tokio::time::sleep_until((start + Duration::from_secs(number)).into()).await;
        let mut second = second.take();
        let now = Instant::now();
        let seconds = now.duration_since(std::mem::replace(&mut told, now)).as_secs_f64();
        let line = json!({
            "seconds": seconds, "made": second.answered.count(), "failed": second.failed, "first_error": second.first_error,
            "late_us": second.late.summary(), "answered_us": second.answered.summary(),
        });
        writeln!(out, "{line}")?;
        out.flush()?;
    }
    Ok(())
}

/// The slices of the large cluster, or copies that nobody watches.
async fn prepare(args: &Args) -> Result<Vec<Slice>> {
    let mut client = Client::connect(&args.directory).await?;
    let mut slices = Vec::new();
    for mut object in client.slices().await? {
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object).context("no labels")?;
        let is_ours = labels.get("endpointslice.kubernetes.io/managed-by").is_some_and(|name| name == "test");
        if !is_ours || labels.contains_key(HEADLESS) {
            continue;
        }
        let metadata = object.get_mut("metadata").and_then(Value::as_object_mut).context("no metadata")?;
        if args.unwatched {
            for server_s in ["uid", "creationTimestamp", "managedFields", "generation"] {
                metadata.remove(server_s);
            }
            let name = metadata.get("name").and_then(Value::as_str).context("no name")?;
            let name = format!("{name}-unwatched");
            metadata.insert("name".to_owned(), name.into());
            metadata
                .get_mut("labels")
                .and_then(Value::as_object_mut)
                .context("no labels")?
                .insert(HEADLESS.into(), "".into());
            let namespace = metadata.get("namespace").and_then(Value::as_str).context("no namespace")?.to_owned();
            client.create(&namespace, serde_json::to_vec(&object)?.into()).await?;
        }
        slices.push(Slice { path: path_of(&object)?, object, next: 0 });
    }
    Ok(slices)
}
