//! permessage-deflate with an independent client that speaks it.

use flate2::{Decompress, FlushDecompress};
use serde_json::json;
use soketto::{
    BoxedError, Data, Incoming, Storage,
    base::{Header, OpCode},
    connection::{Receiver, Sender},
    extension::{Extension, Param, deflate::Deflate},
    handshake::{Client, ServerResponse},
};
use tokio::net::TcpStream;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use crate::support::{Node, Setup, soon, with_sidecar};

type Socket = Compat<TcpStream>;

const BYTES_OUT: &str = "fanout_transport_messages_sent_size_total";

/// The client's extension, but for its decoder: that one asks for a final block, which no message has (RFC 7692
/// §7.2.1) and which newer versions of its library miss.
#[derive(Debug)]
struct Offer {
    deflate: Deflate,
    /// Within a fragmented message that is compressed.
    compressed: bool,
}

impl Extension for Offer {
    fn is_enabled(&self) -> bool {
        self.deflate.is_enabled()
    }

    fn name(&self) -> &str {
        self.deflate.name()
    }

    fn params(&self) -> &[Param<'_>] {
        self.deflate.params()
    }

    fn configure(&mut self, params: &[Param<'_>]) -> Result<(), BoxedError> {
        self.deflate.configure(params)
    }

    fn encode(&mut self, header: &mut Header, data: &mut Storage<'_>) -> Result<(), BoxedError> {
        self.deflate.encode(header, data)
    }

    fn decode(&mut self, header: &mut Header, data: &mut Vec<u8>) -> Result<(), BoxedError> {
        assert!(!header.is_rsv1() || matches!(header.opcode(), OpCode::Text | OpCode::Binary));
        self.compressed |= header.is_rsv1();
        if !header.is_fin() || !std::mem::take(&mut self.compressed) {
            return Ok(());
        }
        data.extend_from_slice(&[0, 0, 0xFF, 0xFF]);
        let mut plain = Vec::with_capacity(200_000);
        Decompress::new(false).decompress_vec(data, &mut plain, FlushDecompress::Sync)?;
        *data = plain;
        header.set_rsv1(false);
        header.set_payload_len(data.len());
        Ok(())
    }

    fn reserved_bits(&self) -> (bool, bool, bool) {
        self.deflate.reserved_bits()
    }
}

fn compressing() -> Setup {
    Setup::open().live("hub", json!({"compression": {"enabled": true}, "maxMessageBytes": 100_000}))
}

/// A client that offers compression; whether it was accepted is checked.
async fn connect(node: &Node, accepted: bool) -> (Sender<Socket>, Receiver<Socket>) {
    let socket = soon(TcpStream::connect(node.client_address())).await.expect("connected");
    let host = node.client_address().to_string();
    let mut client = Client::new(socket.compat(), &host, "/ws/lobby");
    client.add_extension(Box::new(Offer { deflate: Deflate::new(soketto::Mode::Client), compressed: false }));
    let response = soon(client.handshake()).await.expect("answered");
    assert!(matches!(response, ServerResponse::Accepted { .. }), "{response:?}");
    let extensions: Vec<_> = client.drain_extensions().collect();
    assert_eq!(extensions.iter().any(|extension| extension.is_enabled()), accepted);
    let mut builder = client.into_builder();
    builder.add_extensions(extensions);
    builder.finish()
}

async fn text(receiver: &mut Receiver<Socket>) -> String {
    let mut message = Vec::new();
    let data = soon(receiver.receive_data(&mut message)).await.expect("a message");
    assert!(matches!(data, Data::Text(_)));
    String::from_utf8(message).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_messages_go_both_ways_and_a_client_without_compression_reads_them_too() {
    with_sidecar(compressing(), async |node| {
        let (mut sender, mut receiver) = connect(node, true).await;
        let mut plain = node.connect("/ws/lobby").await;
        for length in [1, 300, 70_000] {
            let before = node.metric(BYTES_OUT).expect("counted");
            let message = "fanout ".repeat(length / 7 + 1);
            soon(sender.send_text(&message)).await.expect("sent");
            soon(sender.flush()).await.expect("sent");
            assert_eq!(text(&mut receiver).await, message);
            assert_eq!(plain.text().await, message);
            let sent = node.metric(BYTES_OUT).expect("counted") - before;
            if length > 256 {
                assert!(sent < 1.2 * message.len() as f64, "one of two was compressed: {sent}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compression_bomb_closes_its_connection_alone() {
    with_sidecar(compressing(), async |node| {
        let (mut sender, mut receiver) = connect(node, true).await;
        let (mut other, mut received) = connect(node, true).await;
        soon(sender.send_binary(vec![0; 20_000_000])).await.expect("sent");
        soon(sender.flush()).await.expect("sent");
        let mut message = Vec::new();
        match soon(receiver.receive(&mut message)).await.expect("told") {
            Incoming::Closed(reason) => assert_eq!(reason.code, 1009),
            other => panic!("{other:?}"),
        }
        soon(other.send_text("still here")).await.expect("sent");
        soon(other.flush()).await.expect("sent");
        assert_eq!(text(&mut received).await, "still here");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_of_several_shards_receive_compressed_is_compressed_once() {
    with_sidecar(compressing(), async |node| {
        let (mut sender, first) = connect(node, true).await;
        let (_other, second) = connect(node, true).await;
        let mut receivers = [first, second];
        for message in 0..10 {
            let message = message.to_string().repeat(1_000);
            soon(sender.send_text(&message)).await.expect("sent");
            soon(sender.flush()).await.expect("sent");
            for receiver in &mut receivers {
                assert_eq!(text(receiver).await, message);
            }
        }
        let input = node.metric("fanout_compression_input_size_total");
        assert_eq!(input, Some(11_000.0), "the first one by each of two shards, then each once for both");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_negotiated_unless_the_settings_want_it() {
    with_sidecar(Setup::open(), async |node| {
        let (mut sender, mut receiver) = connect(node, false).await;
        soon(sender.send_text("plain")).await.expect("sent");
        soon(sender.flush()).await.expect("sent");
        assert_eq!(text(&mut receiver).await, "plain");
    })
    .await;
}
