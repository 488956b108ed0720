//! A peer that is gone without a word, as when the power of a machine or of a switch fails: no end, no reset, no answer.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::support::Sidecar;

/// A network namespace with one link to this one, which can be cut.
struct Elsewhere {
    name: String,
    link: String,
}

fn ip(arguments: &str) {
    let done =
        Command::new("ip").args(arguments.split(' ')).output().expect("this test needs `ip` (iproute2)");
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {arguments}: {told} (this test needs root)");
}

impl Elsewhere {
    const HERE: &str = "198.18.77.1";

    fn new() -> Self {
        let id = std::process::id();
        let (name, link) = (format!("fanout-dead-{id}"), format!("fdead{id}"));
        ip(&format!("netns add {name}"));
        let elsewhere = Self { name, link };
        let Self { name, link } = &elsewhere;
        ip(&format!("link add {link} type veth peer name away netns {name}"));
        ip(&format!("addr add {}/30 dev {link}", Self::HERE));
        ip(&format!("link set {link} up"));
        ip(&format!("-n {name} addr add 198.18.77.2/30 dev away"));
        ip(&format!("-n {name} link set away up"));
        elsewhere
    }

    /// An event stream from there, once it has begun.
    fn events(&self, port: u16) -> Child {
        let url = format!("http://{}:{port}/sse/lobby", Self::HERE);
        let mut curl = Command::new("ip")
            .args([
                "netns",
                "exec",
                &self.name,
                "curl",
                "--silent",
                "--show-error",
                "--noproxy",
                "*",
                "--no-buffer",
                &url,
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        BufReader::new(curl.stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert!(first.starts_with("retry: "), "{first:?}: this test needs `curl`");
        curl
    }

    fn cut(&self) {
        ip(&format!("-n {} link set away down", self.name));
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let Self { name, link } = self;
        for arguments in [vec!["link", "del", link], vec!["netns", "del", name]] {
            let _ = Command::new("ip").args(arguments).output();
        }
    }
}

#[test]
fn an_event_stream_whose_peer_is_gone_without_a_word_ends_in_bounded_time() {
    let hub = "{pingIntervalSeconds: 1, pongTimeoutSeconds: 1, limits: {writeTimeoutSeconds: 2}}";
    let sidecar = Sidecar::start_everywhere(hub);
    let elsewhere = Elsewhere::new();
    let mut curl = elsewhere.events(sidecar.address().port());
    let open = "fanout_client_connections_inflight{protocol=\"sse\"}";
    sidecar.until_metric(open, 1);
    elsewhere.cut();
    let began = Instant::now();
    sidecar.until_metric(open, 0);
    // 7 s after the first comment that nobody confirms; TCP alone would try for a quarter of an hour.
    let took = began.elapsed();
    assert!((Duration::from_secs(3)..Duration::from_secs(25)).contains(&took), "{took:?}");
    let _ = curl.kill();
    let _ = curl.wait();
}
