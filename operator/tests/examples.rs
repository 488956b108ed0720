//! What the examples grant in Redis, by a real server: what they say, and no more.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// `redis.conf` of the example.
fn configuration() -> String {
    let text = std::fs::read_to_string(root().join("examples/external-redis.yaml")).unwrap();
    let documents =
        serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap());
    let secret = documents.into_iter().find(|document| document["kind"] == "Secret").unwrap();
    secret["stringData"]["redis.conf"].as_str().unwrap().to_owned()
}

/// A Redis with that configuration, and a door for the test.
struct Redis {
    process: Child,
    directory: TempDir,
}

impl Redis {
    fn start(configuration: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let conf = directory.path().join("redis.conf");
        let door =
            "user default off\nuser test on nopass +@all ~* &*\nport 0\nsave \"\"\nunixsocket redis.sock\n";
        std::fs::write(&conf, configuration.replace("user default off\n", door)).unwrap();
        let start = |program| {
            Command::new(program).arg(&conf).current_dir(directory.path()).stdout(Stdio::null()).spawn()
        };
        let process = start("redis-server").or_else(|_| start("valkey-server"));
        let process = process.expect("redis-server or valkey-server is installed");
        let redis = Self { process, directory };
        let begun = Instant::now();
        while redis.ask(&["PING"]) != "PONG" {
            assert!(begun.elapsed() < PATIENCE, "redis-server does not take the configuration");
            std::thread::sleep(Duration::from_millis(20));
        }
        redis
    }

    fn ask(&self, words: &[&str]) -> String {
        let cli = ["-s", "redis.sock", "--user", "test", "--pass", "x", "--no-auth-warning"];
        let output = Command::new("redis-cli")
            .args(cli)
            .args(words)
            .current_dir(self.directory.path())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Whether a user may send a command.
    fn allows(&self, user: &str, command: &str) -> bool {
        let words: Vec<_> = ["ACL", "DRYRUN", user].into_iter().chain(command.split(' ')).collect();
        match self.ask(&words) {
            answer if answer == "OK" => true,
            answer if answer.contains("no permissions") => false,
            answer => panic!("{command}: {answer}"),
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // One that has ended already is fine.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_user_of_the_nodes_reaches_its_own_channels_and_keys_and_nothing_else() {
    let redis = Redis::start(&configuration());
    let key = "{prod.orders:order-1}:idem:a";
    for granted in [
        "SUBSCRIBE prod.orders:order-1".to_owned(),
        "UNSUBSCRIBE prod.orders:order-1".to_owned(),
        "PUBLISH prod.orders:order-1 x".to_owned(),
        "SUBSCRIBE fanout-nodes/prod.orders/nodes".to_owned(),
        "PUBLISH fanout-nodes/prod.orders/node/0a x".to_owned(),
        "CLIENT SETNAME x".to_owned(),
        "PING".to_owned(),
        "SELECT 0".to_owned(),
        "ROLE".to_owned(),
        "INFO replication".to_owned(),
        format!("EVAL x 1 {key}"),
        format!("SET {key} x PX 1"),
    ] {
        assert!(redis.allows("fanout", &granted), "{granted}");
    }
    for refused in [
        "SUBSCRIBE prod.other:a",
        "SUBSCRIBE fanout-nodes/prod.other/nodes",
        "SUBSCRIBE fanout-nodes/prod.orders.b/nodes",
        "PUBLISH fanout-nodes/prod.orders:a x",
        "SCRIPT LOAD x",
        "PSUBSCRIBE *",
        "GET prod.orders",
        "SET {prod.other:a}:idem:a x",
        "EVAL x 1 other",
        "FLUSHALL",
        "CONFIG GET requirepass",
        "ACL LIST",
        "CLIENT KILL ID 1",
        "SHUTDOWN",
        "SCRIPT FLUSH",
    ] {
        assert!(!redis.allows("fanout", refused), "{refused}");
    }
}

#[test]
fn the_user_of_a_backend_publishes_and_does_nothing_else() {
    let redis = Redis::start(&configuration());
    assert!(redis.allows("backend", "PUBLISH prod.orders:order-1 x"));
    for refused in [
        "PUBLISH fanout-nodes/prod.orders x",
        "PUBLISH prod.other:a x",
        "SUBSCRIBE prod.orders:order-1",
        "GET {prod.orders:order-1}:idem:a",
    ] {
        assert!(!redis.allows("backend", refused), "{refused}");
    }
}

#[test]
fn the_recipe_in_the_docs_is_that_of_the_example() {
    let recipe = std::fs::read_to_string(root().join("docs/redis.md")).unwrap();
    for user in configuration().lines().filter(|line| line.starts_with("user ") && !line.ends_with(" off")) {
        let (head, rest) = user.split_once('>').unwrap();
        let (_, rest) = rest.split_once(' ').unwrap();
        let line = format!("{head}>PASSWORD {rest}");
        assert!(recipe.contains(&line), "docs/redis.md lacks `{line}`");
    }
}
