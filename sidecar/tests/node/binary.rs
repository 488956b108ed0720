//! The program as it is run: exit codes, signals, what it prints and what it does not.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use reqwest::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Addresses, Client, KEY, Setup, connect, eventually, http, soon, token};

/// A child process that is gone with the test.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) directory: TempDir,
    pub(crate) addresses: Addresses,
}

pub(crate) fn sidecar() -> Command {
    Command::new(env!("CARGO_BIN_EXE_fanout-sidecar"))
}

impl Program {
    pub(crate) async fn start(setup: &Setup) -> Self {
        Self::start_by(&mut sidecar(), setup).await
    }

    /// By another command, which is given the program's arguments.
    pub(crate) async fn start_by(command: &mut Command, setup: &Setup) -> Self {
        let (directory, boot, live, _) = setup.write();
        let log = fs::File::create(directory.path().join("log")).unwrap();
        command
            .args(["run", "--log-format", "json", "--node-name", "here", "--config"])
            .arg(&boot)
            .arg("--live");
        let child = command.arg(&live).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let path = directory.path().join("log");
        let addresses = eventually("the program listens", async || addresses(&path)).await;
        let program = Self { child, directory, addresses };
        let ready = format!("http://{}/ready", addresses.admin);
        eventually("ready", async || {
            http().get(&ready).send().await.ok()?.status().is_success().then_some(())
        })
        .await;
        program
    }

    pub(crate) async fn connect(&self, path: &str) -> Client {
        connect(self.addresses.client, path, &[]).await.expect("connected")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Changes the live document, which the program sees by itself.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Value)) {
        let at = |name: &str| self.directory.path().join(name);
        let mut live = serde_json::from_slice(&fs::read(at("live.yaml")).unwrap()).unwrap();
        change(&mut live);
        fs::write(at("new"), live.to_string()).unwrap();
        fs::rename(at("new"), at("live.yaml")).unwrap();
    }

    /// A metric's value, by name and labels as they are written.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let request = http().get(format!("http://{}/metrics", self.addresses.admin)).send();
        let page = soon(soon(request).await.unwrap().text()).await.unwrap();
        let line = page.lines().find(|line| line.split(' ').next() == Some(name)).expect("it is shown");
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// The result of a call of the server API that has no arguments.
    pub(crate) async fn api(&self, method: &str) -> Value {
        let url = format!("http://{}/api/{method}", self.addresses.api);
        let call = http().post(url).header("x-api-key", KEY).json(&json!({})).send();
        let mut answer: Value = soon(soon(call).await.unwrap().json()).await.unwrap();
        answer["result"].take()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        eventually("the program ends", async || self.child.try_wait().unwrap()).await
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the log says once the ports are bound.
fn addresses(log: &Path) -> Option<Addresses> {
    let lines = fs::read_to_string(log).ok()?;
    let line = lines.lines().find(|line| line.contains("node is listening"))?;
    let line: Value = serde_json::from_str(line).expect("a line is JSON");
    let address = |name: &str| line[name].as_str().unwrap().parse().unwrap();
    Some(Addresses { client: address("client"), api: address("api"), admin: address("admin") })
}

fn run(arguments: &[&str]) -> Output {
    sidecar().args(arguments).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_settings_end_with_64_and_every_mistake_before_a_port_is_bound() {
    // The admin port is held: a node that bound before it looked would tell that instead.
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let setup = Setup::open()
        .boot("listen", json!({"admin": held.local_addr().unwrap(), "clients": 1}))
        .live("auth", json!({"apiKeyFiles": ["/nowhere/key"]}));
    let (_directory, boot, live, _) = setup.write();
    let output = run(&["run", "--config", boot.to_str().unwrap(), "--live", live.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64));
    let told = String::from_utf8(output.stderr).unwrap();
    for part in ["boot.yaml: listen.clients: unknown key", "live.yaml: auth.apiKeyFiles[0]: failed to read"] {
        assert!(told.contains(part), "{part} in {told}");
    }
    let output = run(&["check", "--config", boot.to_str().unwrap(), "--live", live.to_str().unwrap()]);
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(64), told));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_in_use_is_told_with_its_setting() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    let any = "127.0.0.1:0";
    let setup = Setup::open().boot("listen", json!({"client": any, "api": address, "admin": any}));
    let (_directory, boot, live, _) = setup.write();
    let output = run(&["run", "--config", boot.to_str().unwrap(), "--live", live.to_str().unwrap()]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(&format!("failed to listen on {address} (listen.api)")), "{told}");
    assert!(told.contains("another process has this port"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_ends_with_0() {
    let mut program = Program::start(&Setup::open()).await;
    let mut client = program.connect("/ws/lobby").await;
    program.signal(Signal::TERM);
    assert_eq!(client.closed().await.0, 1012);
    assert_eq!(program.ended().await.code(), Some(0), "{}", program.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_forces_and_ends_with_0_too() {
    let drain = json!({"maxDisconnectsPerSecond": 1, "timeoutSeconds": 86_400});
    let mut program = Program::start(&Setup::open().live("drain", drain)).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(program.connect("/ws/lobby").await);
    }
    program.signal(Signal::TERM);
    let draining = async || program.log().contains("draining started").then_some(());
    eventually("the drain begins", draining).await;
    program.signal(Signal::TERM);
    assert_eq!(program.ended().await.code(), Some(0), "{}", program.log());
    assert!(program.log().contains("second signal received"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drain_command_returns_when_the_node_is_empty_and_leaves_it_there_not_ready() {
    let mut program = Program::start(&Setup::open()).await;
    let mut client = program.connect("/ws/lobby").await;
    let admin = program.addresses.admin.to_string();
    let drained = tokio::task::spawn_blocking(move || run(&["drain", "--admin", &admin]));
    assert_eq!(client.closed().await.0, 1012);
    let drained = drained.await.unwrap();
    assert!(drained.status.success(), "{drained:?}");
    let ready = http().get(format!("http://{}/ready", program.addresses.admin)).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    program.signal(Signal::TERM);
    assert_eq!(program.ended().await.code(), Some(0));
    let nobody = run(&["drain", "--admin", &program.addresses.admin.to_string()]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8(nobody.stderr).unwrap().contains("failed to reach the admin port"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reads_the_live_document_again() {
    let program = Program::start(&Setup::open()).await;
    program.signal(Signal::HUP);
    let told = async || program.log().contains("new settings applied").then_some(());
    eventually("read again", told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_s_end_is_one_line_and_no_secret_is_ever_logged() {
    let mut program = Program::start(&Setup::open().live("logLevel", json!("trace"))).await;
    let token = token(&json!({"sub": "ann", "grants": ["chat:*"]}));
    let mut client = program.connect(&format!("/ws/chat:a?token={token}")).await;
    client.send("a payload nobody may read in a log").await;
    client.text().await;
    let call = http().post(format!("http://{}/api/info", program.addresses.api)).header("x-api-key", KEY);
    assert!(call.json(&json!({})).send().await.unwrap().status().is_success());
    let forged = format!("{token}x");
    assert!(connect(program.addresses.client, &format!("/ws/chat:a?token={forged}"), &[]).await.is_err());
    program.signal(Signal::TERM);
    client.closed().await;
    program.ended().await;
    let log = program.log();
    let ends: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .filter(|line: &Value| line["message"] == "connection ended")
        .collect();
    assert_eq!(ends.len(), 1);
    assert_eq!((&ends[0]["user"], &ends[0]["reason"]), (&json!("ann"), &json!("drain")));
    assert_eq!((&ends[0]["received_messages"], &ends[0]["sent_messages"]), (&json!(1), &json!(1)));
    let signature = token.rsplit('.').next().unwrap();
    for secret in [&token, signature, KEY, crate::support::SECRET, "a payload nobody"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[test]
fn the_schemas_are_printed_as_json() {
    for document in ["boot", "live"] {
        let output = run(&["schema", document]);
        let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(schema["properties"].is_object(), "{document}");
    }
    let mut help = String::new();
    run(&["--help"]).stdout.as_slice().read_to_string(&mut help).unwrap();
    for command in ["run", "check", "schema", "drain", "protocol"] {
        assert!(help.contains(&format!("  {command}")), "{command} in {help}");
    }
}
