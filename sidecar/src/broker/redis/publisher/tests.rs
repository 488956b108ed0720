use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc::{UnboundedSender, unbounded_channel},
    task::{coop, yield_now},
    time::{sleep, timeout},
};

use super::*;
use crate::domain::Payload;

const PREFIX: &str = "p";

fn prefix() -> Prefix {
    Prefix(format!("{PREFIX}:").into())
}

type Outcome = oneshot::Receiver<Result<Published, BrokerError>>;

fn publish(payload: &str, key: Option<IdempotencyKey>) -> (Publish, Outcome) {
    let payload = Payload::Text(Bytes::copy_from_slice(payload.as_bytes()));
    let publication = Publication::bare("a".parse().unwrap(), payload);
    let options = PublishOptions { idempotency: key, room: None };
    Publish::new(prefix().name(&publication.channel), publication, options)
}

/// A task over a pipe that a test plays Redis on.
struct Fixture {
    gate: Arc<Gate>,
    queue: UnboundedSender<Publish>,
    redis: DuplexStream,
    end: tokio::task::JoinHandle<(PublishTask, End)>,
    /// Kept open.
    _rebuild: mpsc::Sender<String>,
}

fn serve(room: usize) -> Fixture {
    serve_as(room, ([127, 0, 0, 1], 6379).into())
}

/// The address is that of 127.0.0.1.
fn serve_as(room: usize, server: SocketAddr) -> Fixture {
    let settings = serde_yaml::from_str("{address: '127.0.0.1:6379', channelPrefix: 'p'}").unwrap();
    let connector = Connector::new(settings, "node");
    let (queue, queued) = unbounded_channel();
    let (rebuild, rebuilds) = mpsc::channel(1);
    let (commands, _) = unbounded_channel();
    let gate = Arc::new(Gate::default());
    let weak = commands.downgrade();
    let mut task = PublishTask::new(connector, prefix(), queued, rebuilds, Arc::clone(&gate), weak);
    let (near, redis) = duplex(room);
    let end = tokio::spawn(async move {
        let end = task.serve(Connected { transport: Box::new(near), server }, &mut Backoff::new()).await;
        (task, end)
    });
    Fixture { gate, queue, redis, end, _rebuild: rebuild }
}

impl Fixture {
    async fn publish(&self, payload: &str) -> Outcome {
        self.open().await;
        let (publish, outcome) = publish(payload, None);
        self.gate.admit(publish, &self.queue).unwrap();
        outcome
    }

    async fn open(&self) {
        while self.gate.down.lock().unwrap().is_some() {
            yield_now().await;
        }
    }

    async fn lost(self) -> String {
        match timeout(Duration::from_secs(60), self.end).await.unwrap().unwrap().1 {
            End::Lost(reason) | End::Left(reason) => reason,
            End::Closed => panic!("closed"),
        }
    }
}

#[tokio::test]
async fn a_pipeline_of_a_task_that_used_up_its_turn_is_not_overtaken() {
    let (near, mut far) = duplex(4_096);
    let info = RedisConnectionInfo::default().set_skip_set_lib_name();
    let config = AsyncConnectionConfig::new();
    let (connection, driver) = MultiplexedConnection::new_with_config(&info, near, config).await.unwrap();
    tokio::spawn(driver);
    let mut wire = Wire::new(connection);

    while coop::has_budget_remaining() {
        let _ = futures::poll!(std::pin::pin!(coop::consume_budget()));
    }
    wire.send(vec![publish("first", None).0], &prefix());
    yield_now().await;
    wire.send(vec![publish("second", None).0], &prefix());
    tokio::spawn(wire.sent.collect::<Vec<_>>());

    let mut written = String::new();
    while !(written.contains("first") && written.contains("second")) {
        let mut buffer = [0; 4_096];
        let read = far.read(&mut buffer).await.unwrap();
        assert!(read > 0, "both are written: {written}");
        written.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    assert!(written.find("first") < written.find("second"), "{written}");
}

#[test]
fn the_length_of_a_command_is_known_before_it_is_written() {
    let key = Some(IdempotencyKey([7; 16]));
    for payload in ["", "x", &"x".repeat(9), &"x".repeat(10), &"x".repeat(99_999)] {
        for key in [None, key] {
            let mut pipeline = redis::Pipeline::new();
            let length = add(&mut pipeline, &publish(payload, key).0, &prefix());
            assert_eq!(length, pipeline.get_packed_pipeline().len() as u64);
        }
    }
}

#[tokio::test]
async fn what_was_not_written_is_not_published_and_what_was_is_unknown() {
    let mut f = serve(1_000);
    let first = f.publish(&"a".repeat(500)).await;
    let cut = f.publish(&"b".repeat(800)).await;
    let never = f.publish("c").await;
    // Something of the first two has come, and nothing of the third: there is no room for it.
    let mut read = [0; 300];
    f.redis.read_exact(&mut read).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    drop(f.redis);
    for (outcome, is_unknown) in [(first, true), (cut, true), (never, false)] {
        let outcome = outcome.await.unwrap().unwrap_err();
        assert_eq!(matches!(outcome, BrokerError::Unknown(_)), is_unknown, "{outcome:?}");
        assert_eq!(matches!(outcome, BrokerError::Unavailable(_)), !is_unknown, "{outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_connection_and_slowness_does_not() {
    let mut f = serve(1_000);
    let outcome = f.publish(&"x".repeat(100_000)).await;
    let mut buffer = [0; 1_000];
    // A slow link: 1,000 bytes a second.
    for _ in 0..90 {
        f.redis.read_exact(&mut buffer).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    assert!(!f.end.is_finished(), "it moved all the time");
    let stopped = Instant::now();
    let outcome = outcome.await.unwrap().unwrap_err();
    assert!(
        matches!(&outcome, BrokerError::Unknown(text) if text.contains("did not answer in 2 s")),
        "{outcome:?}"
    );
    assert!(stopped.elapsed() < Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn bytes_that_the_kernel_took_are_no_sign_of_life() {
    let f = serve(1_000_000);
    let started = Instant::now();
    let first = f.publish("x").await;
    let each_second = async {
        loop {
            sleep(Duration::from_secs(1)).await;
            drop(f.publish("x").await);
        }
    };
    tokio::select! {
        outcome = first => assert!(matches!(outcome, Ok(Err(BrokerError::Unknown(_)))), "{outcome:?}"),
        () = each_second => {}
    }
    assert!(started.elapsed() <= Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_becomes_a_replica_is_left() {
    let mut f = serve(10_000);
    let mut buffer = [0; 10_000];
    let read = f.redis.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..read], b"*1\r\n$4\r\nROLE\r\n");
    f.redis.write_all(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n").await.unwrap();
    f.redis.read_exact(&mut buffer[..read]).await.unwrap();
    f.redis
        .write_all(b"*5\r\n$5\r\nslave\r\n$5\r\nother\r\n:6380\r\n$9\r\nconnected\r\n:0\r\n")
        .await
        .unwrap();
    let reason = f.lost().await;
    assert!(reason.contains("is a replica of other:6380"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_leads_elsewhere_is_followed() {
    let mut f = serve_as(10_000, ([127, 0, 0, 2], 6379).into());
    let started = Instant::now();
    let reason = loop {
        let mut buffer = [0; 1_000];
        tokio::select! {
            read = f.redis.read(&mut buffer) => if read.unwrap() > 0 {
                f.redis.write_all(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n").await.unwrap();
            },
            end = &mut f.end => break end.unwrap().1,
        }
    };
    assert!(matches!(&reason, End::Left(text) if text.contains("no longer leads to 127.0.0.2:6379")));
    assert!(started.elapsed() < Duration::from_secs(70), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_refused_key_names_the_missing_rules_and_a_passing_error_is_no_refusal() {
    let mut f = serve(10_000);
    let mut outcomes = Vec::new();
    for key in [None, Some(IdempotencyKey([1; 16]))] {
        for _ in 0..2 {
            let (publish, outcome) = publish("x", key);
            f.open().await;
            f.gate.admit(publish, &f.queue).unwrap();
            outcomes.push(outcome);
        }
    }
    let mut asked = String::new();
    while asked.matches("EVAL").count() < 2 {
        let mut buffer = [0; 10_000];
        let read = f.redis.read(&mut buffer).await.unwrap();
        asked.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    for answer in ["-NOPERM no channel", "-LOADING later", "-NOPERM no eval", ":1"] {
        f.redis.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
    }
    let mut told = Vec::new();
    for outcome in outcomes {
        told.push(outcome.await.unwrap());
    }
    assert!(matches!(&told[0], Err(BrokerError::Refused(text)) if !text.contains("ACL rules")), "{told:?}");
    assert!(matches!(&told[1], Err(BrokerError::Unavailable(_))), "{told:?}");
    let rules = "+eval +set +publish ~{p:*";
    assert!(matches!(&told[2], Err(BrokerError::Refused(text)) if text.contains(rules)), "{told:?}");
    assert_eq!(told[3], Ok(Published { position: None, duplicate: true }));
}
