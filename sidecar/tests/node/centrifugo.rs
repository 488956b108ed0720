//! Centrifugo's own server client for Python, unchanged, against the server API.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::support::{KEY, Setup, eventually, soon, token, with_sidecar};

/// The version that the API was held against.
const CENT: &str = "cent==5.2.0";

/// Calls a method for each line, and answers with what it returned or raised.
const SCRIPT: &str = r#"
import json, sys
import cent

for line in sys.stdin:
    url, key, method, fields = json.loads(line)
    request = getattr(cent, method.capitalize() + "Request")(**fields)
    try:
        answer = getattr(cent.Client(url, key), method)(request).model_dump()
    except cent.CentApiResponseError as error:
        answer = {"raised": error.code}
    except cent.CentError as error:
        answer = {"raised": type(error).__name__}
    print(json.dumps(answer), flush=True)
"#;

/// A Python that has the client: an environment of its own, made once for this build directory.
async fn python() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(CENT);
    let (program, complete) = (directory.join("bin/python"), directory.join("complete"));
    if !complete.exists() {
        // What an interrupted run has left may lack a part.
        let _ = fs::remove_dir_all(&directory);
        let venv = ["-m".as_ref(), "venv".as_ref(), directory.as_os_str()];
        finish(Command::new("python3").args(venv), "apt-get install -y python3-venv").await;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", CENT];
        finish(Command::new(&program).args(pip), "pip fetches it from PyPI").await;
        fs::write(complete, "").unwrap();
    }
    program
}

async fn finish(command: &mut Command, hint: &str) {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.unwrap_or_else(|error| panic!("{command:?} does not start ({error}): {hint}"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {told}{hint}");
}

/// The client, at work.
struct Cent {
    _process: Child,
    calls: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    url: String,
}

impl Cent {
    async fn start(url: String) -> Self {
        let mut command = Command::new(python().await);
        command.args(["-c", SCRIPT]).env("NO_PROXY", "127.0.0.1").kill_on_drop(true);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (calls, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { _process: process, calls, answers: BufReader::new(answers).lines(), url }
    }

    async fn call(&mut self, method: &str, fields: Value) -> Value {
        self.call_with(KEY, method, fields).await
    }

    async fn call_with(&mut self, key: &str, method: &str, fields: Value) -> Value {
        let call = format!("{}\n", json!([self.url, key, method, fields]));
        self.calls.write_all(call.as_bytes()).await.unwrap();
        let answer = soon(self.answers.next_line()).await.unwrap();
        serde_json::from_str(&answer.expect("the client goes on")).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn centrifugo_s_python_client_publishes_asks_and_disconnects() {
    with_sidecar(Setup::open(), async |node| {
        let mut cent = Cent::start(node.api_url("/api")).await;
        let mut lobby = node.connect("/ws/lobby").await;
        let ann = token(&json!({"sub": "ann", "grants": ["chat:*"]}));
        let mut one = node.connect(&format!("/ws/chat:a?token={ann}")).await;
        let mut two = node.connect(&format!("/ws/chat:b?token={ann}")).await;
        let bob = token(&json!({"sub": "bob", "grants": ["chat:*"]}));
        let mut other = node.connect(&format!("/ws/chat:a?token={bob}")).await;

        cent.call("publish", json!({"channel": "lobby", "data": {"text": "hello"}})).await;
        assert_eq!(lobby.json().await, json!({"text": "hello"}));
        cent.call("publish", json!({"channel": "lobby", "data": null, "b64data": "AP8="})).await;
        assert_eq!(lobby.message().await.into_data(), vec![0, 255]);

        let channels = json!(["chat:a", "cellar", "chat:b"]);
        let told = cent.call("broadcast", json!({"channels": channels, "data": 7})).await;
        let errors: Vec<_> = (0..3).map(|at| told["responses"][at]["error"]["code"].clone()).collect();
        assert_eq!(errors, [Value::Null, json!(102), Value::Null]);
        for client in [&mut one, &mut two, &mut other] {
            assert_eq!(client.text().await, "7");
        }

        let told = cent.call("channels", json!({"pattern": "chat:*"})).await;
        assert_eq!(told["channels"], json!({"chat:a": {"num_clients": 2}, "chat:b": {"num_clients": 1}}));
        let counted = async || {
            let told = cent.call("info", json!({})).await;
            let this = &told["nodes"][0];
            assert_eq!(this["name"], "node-0");
            assert!(
                !this["uid"].as_str().unwrap().is_empty() && !this["version"].as_str().unwrap().is_empty()
            );
            (this["num_clients"] == 4 && this["num_channels"] == 3).then_some(())
        };
        eventually("the node tells of its clients and channels", counted).await;

        cent.call("disconnect", json!({"user": "ann"})).await;
        for client in [&mut one, &mut two] {
            assert_eq!(client.closed().await.0, 3503);
        }
        cent.call("publish", json!({"channel": "chat:a", "data": "still here"})).await;
        assert_eq!(other.text().await, "\"still here\"");

        let unknown = cent.call("publish", json!({"channel": "cellar", "data": 1})).await;
        assert_eq!(unknown, json!({"raised": 102}));
        let refused = cent.call_with("wrong", "info", json!({})).await;
        assert_eq!(refused, json!({"raised": "CentUnauthorizedError"}));
    })
    .await;
}
