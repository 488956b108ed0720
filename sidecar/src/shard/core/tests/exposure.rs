//! Who is told of a publisher.

use super::*;
use crate::shard::Packer;

const CONNECTION: ConnectionId = ConnectionId { shard: 0, slot: 1, generation: 2 };

fn exposing(expose: bool) -> Arc<Rules> {
    let open = "{name: default, publish: allowed, subscribe: allowed";
    rules(&SETTINGS.replace(open, &format!("{open}, exposePublisher: {expose}")))
}

fn by_ann(text: &str) -> Delivery {
    let origin = crate::domain::Origin { node: NodeId(1), node_start: 1, sequence: 1, previous_sequence: 0 };
    let payload = Payload::Text(text.to_owned().into());
    let (user, connection) = (Some("ann".into()), Some(CONNECTION));
    Publication { origin: Some(origin), user, connection, ..Publication::bare(name("a"), payload) }.into()
}

#[test]
fn a_change_of_the_settings_holds_for_what_comes_after_it_and_framed_clients_alone_are_told() {
    let mut bench = Bench::new();
    let mut framed = bench.connect(Protocol::RawFramed, &["a"]);
    let mut bare = bench.connect(Protocol::RawBare, &["a"]);
    let mut sse = bench.connect(Protocol::Sse, &["a"]);
    bench.frames(&mut framed);
    let node = r#""node":"0000000000000001""#;
    let publisher = r#""publisher":{"user":"ann","client":"0000000000000001-0-1-2"}"#;
    for (expose, more) in [(false, String::new()), (true, format!(",{publisher}")), (false, String::new())] {
        bench.set_rules(exposing(expose));
        bench.core.publications(&[Arc::new(by_ann("1"))]);
        assert_eq!(
            bench.frames(&mut framed),
            [format!(r#"{{"pub":{{"channel":"a","data":1,{node}{more}}}}}"#)]
        );
    }
    assert_eq!(bench.frames(&mut bare), ["1"; 3]);
    bench.drain(&mut sse);
    assert_eq!(sse.received, b"retry: 3000\n\ndata: 1\n\ndata: 1\n\ndata: 1\n\n");
}

#[test]
fn frames_that_were_compressed_by_other_settings_are_not_sent() {
    let mut bench = Bench::new();
    bench.deflate = true;
    let mut client = bench.connect(Protocol::RawFramed, &["a"]);
    bench.frames(&mut client);
    bench.core.wanted.set(&bench.core.rules.hub.compression);
    let mut packer = Packer::new(Arc::clone(&bench.core.wanted));
    let text = "x".repeat(1_000);
    let compressed = |exposure| {
        let mut frame = Vec::new();
        let form = WireForm::FramedDeflated;
        form.put_compressed(&mut frame, &by_ann(&text), exposure, &mut Deflater::default(), 3);
        frame
    };
    let mut receive = |bench: &mut Bench, delivery: Delivery| {
        let before = bench.core.metrics.deflate_in.get();
        bench.core.publications(&[Arc::new(delivery)]);
        bench.drain(&mut client);
        (std::mem::take(&mut client.received), bench.core.metrics.deflate_in.get() > before)
    };
    bench.set_rules(exposing(true));
    // Asks for the next ones, which come as asked.
    assert_eq!(receive(&mut bench, by_ann(&text)), (compressed(Exposure::Exposed), true));
    let mut packed = by_ann(&text);
    packer.pack(&mut packed);
    assert_eq!(receive(&mut bench, packed), (compressed(Exposure::Exposed), false));
    bench.set_rules(exposing(false));
    let mut late = by_ann(&text);
    packer.pack(&mut late);
    assert_eq!(receive(&mut bench, late), (compressed(Exposure::Hidden), true));
    assert_ne!(compressed(Exposure::Hidden), compressed(Exposure::Exposed));
}

#[test]
fn a_publication_says_whether_its_namespace_exposes_its_publisher() {
    let mut bench = Bench::new();
    let client = bench.connect(Protocol::RawBare, &["a"]);
    for (expose, expected) in [(false, Exposure::Hidden), (true, Exposure::Exposed)] {
        bench.set_rules(exposing(expose));
        bench.hear(&client, Opcode::Text, b"x");
        let Ok(Work { task: Task::Publish { connection, exposure, .. }, .. }) = bench.work.try_recv() else {
            panic!("it publishes");
        };
        assert_eq!((connection, exposure), (bench.core.id(client.slot), expected));
    }
}
