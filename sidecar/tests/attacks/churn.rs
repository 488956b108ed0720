//! Coming and going.

use std::{thread, time::Duration};

use crate::support::{Client, Sidecar};

#[test]
fn ten_thousand_channels_of_one_client_cost_little_and_the_next_is_refused() {
    let sidecar = Sidecar::start("{limits: {channelsPerConnection: 10000}}");
    let mut good = sidecar.bare("lobby");
    let (memory, cpu) = (sidecar.memory(), sidecar.cpu());
    let mut client = sidecar.framed("/ws");
    // A hundred at once: the queue of what is waited for is bounded too.
    for hundred in 0..100 {
        good.echo("still here");
        let numbers = hundred * 100..hundred * 100 + 100;
        for number in numbers.clone() {
            client.send_text(&format!(r#"{{"subscribe":{{"channel":"c{number}"}}}}"#));
        }
        for number in numbers {
            assert_eq!(client.text(), format!(r#"{{"subscribed":{{"channel":"c{number}"}}}}"#));
        }
    }
    client.send_text(r#"{"subscribe":{"channel":"more"}}"#);
    assert!(client.text().contains(r#""code":106"#));
    let (memory, cpu) = (sidecar.memory() - memory, sidecar.cpu() - cpu);
    assert!(memory < 24, "{memory} MiB for 10,000 channels");
    assert!(cpu < Duration::from_secs(20), "{cpu:?} for 10,000 channels");
    let mut slowest = Duration::ZERO;
    for number in 0..200 {
        // Each of these visits the client with ten thousand cursors.
        client.send_text(&format!(r#"{{"publish":{{"channel":"c{number}","data":1}}}}"#));
        slowest = slowest.max(good.echo(&number.to_string()));
    }
    assert!(slowest < Duration::from_secs(1), "a message took {slowest:?}");
    drop(client);
    sidecar.until_metric("fanout_node_channels", 1);
}

#[test]
fn subscribing_and_unsubscribing_for_ever_leaves_nothing_behind() {
    let sidecar = Sidecar::start("{}");
    let mut good = sidecar.bare("lobby");
    let mut client = sidecar.framed("/ws");
    let mut churn = |from: u32, to: u32| {
        for number in from..to {
            if number % 100 == 0 {
                good.echo("still here");
            }
            client.send_text(&format!(r#"{{"subscribe":{{"channel":"c{number}"}}}}"#));
            assert!(client.text().contains("subscribed"));
            client.send_text(&format!(r#"{{"unsubscribe":{{"channel":"c{number}"}}}}"#));
            assert!(client.text().contains("unsubscribed"));
        }
    };
    churn(0, 200);
    let before = sidecar.memory();
    churn(200, 1_000);
    assert!(sidecar.memory() < before + 12, "{} MiB more after 800 channels", sidecar.memory() - before);
    good.echo("still here");
    sidecar.until_metric("fanout_node_channels", 1);
}

#[test]
fn connecting_and_leaving_for_ever_leaves_nothing_behind() {
    let sidecar = Sidecar::start("{maxConnections: 20}");
    let mut good = sidecar.bare("lobby");
    let churn = |times: usize| {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for number in 0..times {
                        let client = Client::shake(sidecar.connect(), "/ws/lobby", "fanout.bare");
                        match (client, number % 2) {
                            (Ok(mut client), 0) => client.send(0x88, b""),
                            // Half of them say nothing when they go.
                            (Ok(_), _) | (Err(503), _) => {}
                            (Err(status), _) => panic!("status {status}"),
                        }
                    }
                });
            }
        });
    };
    churn(100);
    let before = sidecar.memory();
    churn(250);
    assert!(sidecar.memory() < before + 12, "{} MiB more after 1,000 clients", sidecar.memory() - before);
    good.echo("still here");
    sidecar.until_metric("fanout_node_connections", 1);
}
