//! The server API as a Centrifugo client calls it.

use reqwest::StatusCode;
use serde_json::{Value, json};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{Cluster, KEY, Setup, eventually, http, with_sidecar};

async fn status_of(
    url: String,
    content_type: Option<&str>,
    mode: Option<&str>,
    body: String,
) -> (StatusCode, Value) {
    let mut request = http().post(url).header("x-api-key", KEY).body(body);
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    if let Some(mode) = mode {
        request = request.header("x-centrifugo-error-mode", mode);
    }
    let response = request.send().await.unwrap();
    (response.status(), response.json().await.unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_sends_data_as_it_came_and_b64data_as_bytes() {
    with_sidecar(Setup::open(), async |node| {
        let mut client = node.connect("/ws/lobby").await;
        let body = r#"{"channel": "lobby", "data": {"b": 1.50,  "a": "ü"}, "skip_history": true}"#;
        let answer =
            status_of(node.api_url("/api/publish"), Some("application/json"), None, body.to_owned()).await;
        assert_eq!(answer, (StatusCode::OK, json!({"result": {}})));
        assert_eq!(client.text().await, r#"{"b": 1.50,  "a": "ü"}"#);
        node.api("publish", &json!({"channel": "lobby", "b64data": "AP8="})).await;
        assert_eq!(client.message().await.into_data(), vec![0, 255]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broadcast_tells_what_became_of_each_channel() {
    with_sidecar(Setup::open(), async |node| {
        let mut first = node.connect("/ws/lobby").await;
        let mut second = node.connect("/ws/room-1").await;
        let channels = json!(["lobby", "cellar", "a b", "room-1"]);
        let reply = node.api("broadcast", &json!({"channels": channels, "data": 7})).await;
        let responses = reply["result"]["responses"].as_array().unwrap();
        assert_eq!(responses[0], json!({"result": {}}));
        assert_eq!(responses[1]["error"]["code"], 102);
        assert_eq!(responses[2]["error"]["code"], 107);
        assert_eq!(responses[3], json!({"result": {}}));
        assert_eq!((first.text().await, second.text().await), ("7".to_owned(), "7".to_owned()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_have_centrifugo_s_codes_and_statuses_where_asked_for() {
    with_sidecar(Setup::open().live("hub", json!({"maxMessageBytes": 100})), async |node| {
        let publish = || node.api_url("/api/publish");
        let big = json!({"channel": "lobby", "data": "x".repeat(200)}).to_string();
        for (body, code, status) in [
            (r#"{"channel": "cellar", "data": 1}"#, 102, StatusCode::NOT_FOUND),
            (r#"{"channel": "none:a", "data": 1}"#, 102, StatusCode::NOT_FOUND),
            (r#"{"channel": "fanout:nodes", "data": 1}"#, 102, StatusCode::NOT_FOUND),
            (r#"{"channel": "lobby"}"#, 107, StatusCode::BAD_REQUEST),
            (r#"{"data": 1}"#, 107, StatusCode::BAD_REQUEST),
            (r#"{"channel": "a b", "data": 1}"#, 107, StatusCode::BAD_REQUEST),
            ("no JSON", 107, StatusCode::BAD_REQUEST),
            (&big, 107, StatusCode::BAD_REQUEST),
        ] {
            let json = Some("application/json");
            let (plain, answer) = status_of(publish(), json, None, body.to_owned()).await;
            assert_eq!((plain, &answer["error"]["code"]), (StatusCode::OK, &json!(code)), "{body}");
            assert!(!answer["error"]["message"].as_str().unwrap().is_empty());
            let (transport, answer) = status_of(publish(), json, Some("transport"), body.to_owned()).await;
            assert_eq!((transport, &answer["error"]["code"]), (status, &json!(code)), "{body}");
        }
        let (status, _) = status_of(publish(), None, None, "{}".to_owned()).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        let (status, _) = status_of(publish(), Some("text/plain"), None, "{}".to_owned()).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        let huge = format!(r#"{{"channel": "lobby", "data": "{}"}}"#, "x".repeat(3 * 1_024 * 1_024));
        let (status, _) = status_of(publish(), Some("application/json"), None, huge).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        let get = http().get(publish()).header("x-api-key", KEY).send().await.unwrap();
        assert_eq!(get.status(), StatusCode::METHOD_NOT_ALLOWED);
        let (status, _) =
            status_of(node.api_url("/api/nothing"), Some("application/json"), None, "{}".to_owned()).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_info_and_disconnect_speak_for_the_whole_cluster() {
    let cluster = Cluster::of(3).await;
    let [first, second, third] = &cluster.nodes[..] else { unreachable!() };
    let user = crate::support::token(&json!({"sub": "ann", "grants": ["chat:*"]}));
    let _one = first.connect("/ws/lobby").await;
    let mut two = second.connect(&format!("/ws/chat:a?token={user}")).await;
    let mut three = third.connect(&format!("/ws/chat:a?token={user}")).await;
    let counted = async || {
        let reply = first.api("channels", &json!({})).await;
        let expected = json!({"lobby": {"num_clients": 1}, "chat:a": {"num_clients": 2}});
        (reply == json!({"result": {"channels": expected, "complete": true}})).then_some(())
    };
    eventually("the channels of all nodes", counted).await;
    let some = third.api("channels", &json!({"pattern": "chat:*"})).await;
    assert_eq!(some, json!({"result": {"channels": {"chat:a": {"num_clients": 2}}, "complete": true}}));
    let clients = async || {
        let info = third.api("info", &json!({})).await;
        let nodes = info["result"]["nodes"].as_array().unwrap();
        assert_eq!(info["result"]["complete"], true);
        let names: Vec<_> = nodes.iter().map(|node| node["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["node-0", "node-1", "node-2"]);
        nodes.iter().all(|node| node["num_clients"] == 1).then_some(())
    };
    eventually("every node tells of its client", clients).await;
    let reply = first.api("disconnect", &json!({"user": "ann"})).await;
    assert_eq!(reply, json!({"result": {"num_clients": 2, "complete": true}}));
    for client in [&mut two, &mut three] {
        assert_eq!(client.closed().await.0, 3503);
    }
    for body in [json!({}), json!({"user": "a", "client": "no-id"}), json!({"client": "no-id"})] {
        assert_eq!(first.api("disconnect", &body).await["error"]["code"], 107, "{body}");
    }
    cluster.stop().await;
}

// === the description ===

/// A schema of the document that may refer to its components.
fn validator(document: &Value, schema: &Value) -> jsonschema::Validator {
    let mut root = schema.clone();
    root["components"] = document["components"].clone();
    jsonschema::validator_for(&root).expect("a schema")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_says_what_the_methods_take_and_answer() {
    with_sidecar(Setup::open(), async |node| {
        let document: Value = http().get(node.api_url("/openapi.json")).send().await.unwrap().json().await.unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        assert_eq!(document, fanout_sidecar::api::description(), "what is printed is what is served");
        let calls = [
            ("/api/publish", json!({"channel": "lobby", "data": {"any": [1]}}), vec!["channel"]),
            ("/api/publish", json!({"channel": "cellar", "b64data": "AA=="}), vec!["channel"]),
            ("/api/broadcast", json!({"channels": ["lobby", "cellar"], "data": null}), vec!["channels"]),
            ("/api/channels", json!({"pattern": "*"}), vec![]),
            ("/api/info", json!({}), vec![]),
            ("/api/disconnect", json!({"user": "nobody"}), vec![]),
            ("/api/disconnect", json!({}), vec![]),
        ];
        let _client = node.connect("/ws/lobby").await;
        let mut described: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
        for (path, body, required) in calls {
            let operation = &document["paths"][path]["post"];
            let request = &operation["requestBody"]["content"]["application/json"]["schema"];
            assert!(validator(&document, request).is_valid(&body), "{path} takes {body}");
            for field in required {
                let mut without = body.clone();
                without.as_object_mut().unwrap().remove(field);
                assert!(!validator(&document, request).is_valid(&without), "{path} needs {field}");
                assert_eq!(node.api(&path[5..], &without).await["error"]["code"], 107, "{path} needs {field}");
            }
            let reply = node.api(&path[5..], &body).await;
            let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
            let errors: Vec<_> =
                validator(&document, schema).iter_errors(&reply).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{path} {body} answers {reply}: {errors:?}");
            assert!(!validator(&document, schema).is_valid(&json!({"nonsense": 1})), "the schema says something");
            described.retain(|other| other != path);
        }
        assert!(described.is_empty(), "not called: {described:?}");
        let unauthorized = http().post(node.api_url("/api/info")).json(&json!({})).send().await.unwrap();
        assert_eq!(unauthorized.status(), StatusCode::UNAUTHORIZED);
        let schema = &document["paths"]["/api/info"]["post"]["responses"]["401"]["content"]["application/json"]["schema"];
        let body = unauthorized.json().await.unwrap();
        assert!(validator(&document, schema).is_valid(&body), "{body}");
    })
    .await;
}

/// All that the server API answers to these bytes.
async fn raw(address: std::net::SocketAddr, request: &str, ends: bool) -> String {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    if ends {
        tcp.shutdown().await.unwrap();
    }
    let mut answer = Vec::new();
    let shown = &request[..request.len().min(100)];
    timeout(crate::support::SOON, tcp.read_to_end(&mut answer))
        .await
        .unwrap_or_else(|_| panic!("no end: {shown}"))
        .unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_of_a_request_has_one_shape() {
    with_sidecar(Setup::open(), async |node| {
        let long = "x".repeat(1_000_000);
        let rest = format!("host: a\r\nx-api-key: {KEY}\r\nconnection: close\r\n");
        let json = format!("{rest}content-type: application/json\r\n");
        for (request, status, part) in [
            (format!("GET /api/nothing HTTP/1.1\r\n{rest}\r\n"), 404, "no such method"),
            (format!("GET /api/publish HTTP/1.1\r\n{rest}\r\n"), 405, "use POST"),
            (format!("POST /openapi.json HTTP/1.1\r\n{rest}content-length: 0\r\n\r\n"), 405, "use GET"),
            (
                format!(
                    "POST /api/info HTTP/1.1\r\n{json}content-encoding: gzip\r\ncontent-length: 2\r\n\r\n{{}}"
                ),
                415,
                "content coding",
            ),
            (
                format!("POST /api/info HTTP/1.1\r\n{json}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
                501,
                "transfer coding",
            ),
            (
                format!("POST /api/info HTTP/1.1\r\n{json}host: b\r\ncontent-length: 2\r\n\r\n{{}}"),
                400,
                "`Host`",
            ),
            (
                format!("POST /api/info HTTP/1.1\r\n{json}x-api-key: {KEY}\r\ncontent-length: 2\r\n\r\n{{}}"),
                400,
                "more than once",
            ),
            (format!("POST /api/info HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"), 431, "too long"),
            ("POST /api/info\r\n\r\n".to_owned(), 400, "not a valid HTTP/1.1 request"),
        ] {
            let answer = raw(node.api_address(), &request, false).await;
            let shown = &request[..request.len().min(100)];
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}: {answer}");
            let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
            assert!(body["error"]["code"].is_u64(), "{answer}");
            assert!(body["error"]["message"].as_str().unwrap().contains(part), "{answer}");
            assert_eq!(answer.to_ascii_lowercase().contains("\r\nallow: "), status == 405, "{answer}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_has_sent_its_end_gets_its_answer() {
    with_sidecar(Setup::open(), async |node| {
        let request = format!(
            "POST /api/info HTTP/1.1\r\nhost: a\r\nx-api-key: {KEY}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
        );
        let answer = raw(node.api_address(), &request, true).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"result\""), "{answer}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_b64data_is_an_empty_message() {
    with_sidecar(Setup::open(), async |node| {
        let mut client = node.connect("/ws/lobby").await;
        node.api("publish", &json!({"channel": "lobby", "b64data": ""})).await;
        assert_eq!(client.message().await.into_data(), Vec::<u8>::new());
        node.api("publish", &json!({"channel": "lobby", "b64data": "", "data": 1})).await;
        assert_eq!(client.text().await, "1");
    })
    .await;
}
