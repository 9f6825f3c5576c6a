//! Questions to agents, each through a port-forward of its own.

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{sync::Semaphore, task::JoinSet, time};

use crate::kubernetes::cluster::{AgentPod, Cluster};

/// Agents that are asked at once.
const AT_ONCE: usize = 16;
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer, in bytes: the status of a node with some thousand pods.
const LONGEST: usize = 64 * 1024 * 1024;

/// What the agents said, by agent.
pub(in crate::cli) struct Answers<T> {
    /// The agents, and what each said or why it did not.
    pub(in crate::cli) agents: Vec<(AgentPod, Result<T, String>)>,
    /// Why none was asked, if this user may not.
    pub(in crate::cli) forbidden: Option<String>,
}

/// Asks all of them. Those on their way out are not asked where their node has another.
pub(in crate::cli) async fn ask_all<T: DeserializeOwned + Send + 'static>(
    cluster: &Cluster,
    mut agents: Vec<AgentPod>,
    port: u16,
    path: &str,
) -> Answers<T> {
    agents.sort_by_key(|agent| (agent.node.clone(), agent.terminating, !agent.ready, agent.name.clone()));
    agents.dedup_by(|later, first| later.node == first.node && later.terminating);
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for (index, agent) in agents.iter().cloned().enumerate() {
        let (cluster, places, path) = (cluster.clone(), Arc::clone(&places), path.to_owned());
        tasks.spawn(async move {
            let _place = places.acquire_owned().await;
            let late = |_| Refusal::Silent(format!("no answer within {} s", PATIENCE.as_secs()));
            (index, time::timeout(PATIENCE, ask(&cluster, &agent, port, &path)).await.map_err(late).flatten())
        });
    }
    let mut said: Vec<Option<Result<T, String>>> = agents.iter().map(|_| None).collect();
    let mut forbidden = None;
    while let Some(done) = tasks.join_next().await {
        let Ok((index, answer)) = done else { continue };
        let answer = answer.map_err(|refusal| match refusal {
            Refusal::Forbidden(why) => {
                forbidden.get_or_insert_with(|| why.clone());
                why
            }
            Refusal::Silent(why) => why,
        });
        if let Some(place) = said.get_mut(index) {
            *place = Some(answer);
        }
    }
    let unknown = || Err("it was not asked to the end".to_owned());
    let agents = agents.into_iter().zip(said).map(|(agent, said)| (agent, said.unwrap_or_else(unknown)));
    Answers { agents: agents.collect(), forbidden }
}

enum Refusal {
    Forbidden(String),
    Silent(String),
}

async fn ask<T: DeserializeOwned>(cluster: &Cluster, agent: &AgentPod, port: u16, path: &str) -> Result<T, Refusal> {
    let stream = cluster.connect(agent, port).await.map_err(|error| {
        if error.is_forbidden() { Refusal::Forbidden(error.to_string()) } else { Refusal::Silent(error.to_string()) }
    })?;
    let silent = |what: &str| {
        let what = what.to_owned();
        move |error: hyper::Error| Refusal::Silent(format!("{what}: {error}"))
    };
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(silent("its port was not reached"))?;
    let driving = tokio::spawn(connection);
    let request = Request::get(path).header(HOST, "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| Refusal::Silent(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(silent("nobody answers on its port"))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LONGEST).collect().await;
    driving.abort();
    let body = body.map_err(|error| Refusal::Silent(error.to_string()))?.to_bytes();
    if status != StatusCode::OK {
        return Err(Refusal::Silent(format!("it answered {status}: {}", String::from_utf8_lossy(&body).trim())));
    }
    serde_json::from_slice(&body)
        .map_err(|error| Refusal::Silent(format!("this version does not understand its answer: {error}")))
}
