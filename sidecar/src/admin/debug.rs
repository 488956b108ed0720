//! What a process is doing that is slow, large or stuck.

use std::{fs, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::Admin;
use crate::{
    profile::{self, Allocations, ProfileError},
    shard::ShardState,
};

/// As `go tool pprof` asks for it where nobody says how long.
const SECONDS: u64 = 30;

pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/debug/dump", get(dump))
        .route("/debug/pprof/profile", get(cpu))
        .route("/debug/pprof/heap", get(async |admin| heap(admin, Allocations::InUse).await))
        .route("/debug/pprof/allocs", get(async |admin| heap(admin, Allocations::All).await))
}

// === profiles ===

#[derive(Deserialize)]
struct Seconds {
    seconds: Option<u64>,
}

async fn cpu(Query(Seconds { seconds }): Query<Seconds>) -> Response {
    let seconds = seconds.unwrap_or(SECONDS);
    let longest = profile::LONGEST.as_secs();
    if !(1..=longest).contains(&seconds) {
        return (StatusCode::BAD_REQUEST, format!("seconds: give 1 to {longest}\n")).into_response();
    }
    answer(profile::cpu(Duration::from_secs(seconds)).await)
}

async fn heap(State(admin): State<Admin>, which: Allocations) -> Response {
    answer(match &admin.allocator {
        Some(allocator) => profile::heap(&**allocator, which).await,
        None => Err(ProfileError::NoHeap),
    })
}

fn answer(profile: Result<Vec<u8>, ProfileError>) -> Response {
    let error = match profile {
        Ok(profile) => {
            return ([(header::CONTENT_TYPE, "application/octet-stream")], profile).into_response();
        }
        Err(error) => error,
    };
    let status = match &error {
        ProfileError::Busy => StatusCode::TOO_MANY_REQUESTS,
        ProfileError::NoHeap => StatusCode::NOT_FOUND,
        ProfileError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, format!("{error}\n")).into_response()
}

// === the dump ===

async fn dump(State(admin): State<Admin>) -> Json<Value> {
    let shards: Vec<_> = admin.shards.states().iter().map(shard).collect();
    let runtimes: serde_json::Map<_, _> =
        admin.runtimes.iter().map(|(name, handle)| ((*name).to_owned(), runtime(handle))).collect();
    Json(json!({
        "node": *admin.about,
        "shards": shards,
        "runtimes": runtimes,
        "threads": threads(),
        "ready": admin.readiness.report(),
    }))
}

fn shard(state: &ShardState) -> Value {
    let ShardState {
        stage,
        since,
        longest,
        connections,
        subscriptions,
        channels,
        log_bytes,
        mail,
        mail_bytes,
    } = state;
    json!({
        "stage": stage,
        "sinceSeconds": since.as_secs_f64(),
        "longestTurnSeconds": longest.as_secs_f64(),
        "connections": connections,
        "subscriptions": subscriptions,
        "channels": channels,
        "logBytes": log_bytes,
        "mail": mail,
        "mailBytes": mail_bytes,
    })
}

fn runtime(handle: &Handle) -> Value {
    let metrics = handle.metrics();
    json!({
        "workers": metrics.num_workers(),
        "tasks": metrics.num_alive_tasks(),
        "queued": metrics.global_queue_depth(),
    })
}

/// Each thread's name, what it is doing by the kernel's account, and the CPU time that it has used; empty where there
/// is no `/proc`.
fn threads() -> Vec<Value> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    tasks.filter_map(|task| thread(&fs::read_to_string(task.ok()?.path().join("stat")).ok()?)).collect()
}

/// A line of `/proc/[pid]/task/[tid]/stat`, as `proc(5)` has it.
fn thread(stat: &str) -> Option<Value> {
    let (id, rest) = stat.split_once(" (")?;
    // The name may hold anything, parentheses too.
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<_> = rest.split(' ').collect();
    let state = match *fields.first()? {
        "R" => "running",
        "S" => "sleeping",
        "D" => "waiting for the disk",
        "T" | "t" => "stopped",
        other => other,
    };
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let seconds = |ticks: u64| ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    let (user, system) = (seconds(ticks(11)?), seconds(ticks(12)?));
    Some(json!({
        "id": id.parse::<u64>().ok()?,
        "name": name,
        "state": state,
        "userSeconds": user,
        "systemSeconds": system,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat_is_read_whatever_the_name_holds() {
        let stat = "42 (a) (b) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 1 2 3";
        let read = thread(stat).unwrap();
        assert_eq!(
            (&read["id"], &read["name"], &read["state"]),
            (&json!(42), &json!("a) (b"), &json!("sleeping"))
        );
        assert_eq!(read["userSeconds"], json!(250.0 / rustix::param::clock_ticks_per_second() as f64));
        assert!(thread("nonsense").is_none());
    }
}
