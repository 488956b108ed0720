//! Who may connect, and what that opens.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{Setup, http, token, with_sidecar};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_settings_nothing_is_open() {
    with_sidecar(Setup::new("{}").live("auth", json!({})), async |node| {
        let (status, _) = node.try_connect("/ws/lobby", &[]).await.map(drop).unwrap_err();
        assert_eq!(status, StatusCode::NOT_FOUND);
        let origin = [("origin", "https://app.example.com")];
        let (status, _) = node.try_connect("/ws/lobby", &origin).await.map(drop).unwrap_err();
        assert_eq!(status, StatusCode::FORBIDDEN);
        let call = http().post(node.api_url("/api/info")).json(&json!({}));
        let any_key = call.try_clone().unwrap().header("x-api-key", "any").send().await.unwrap();
        assert_eq!(any_key.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(call.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
        let bearer = [("authorization", "Bearer a.b.c")];
        let (status, body) = node.try_connect("/ws/lobby", &bearer).await.map(drop).unwrap_err();
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(body["error"]["message"].as_str().unwrap().contains("no key is configured"), "{body}");
        // The first by its shard, the others before there was one.
        for reason in ["channel", "origin", "token"] {
            node.until_metric(&format!("fanout_client_refused_total{{reason=\"{reason}\"}}"), 1.0).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_its_channels_whichever_way_it_comes() {
    with_sidecar(Setup::open(), async |node| {
        let token = token(&json!({"sub": "ann", "exp": now() + 60, "grants": ["chat:room-*"]}));
        let (status, body) = node.try_connect("/ws/chat:room-1", &[]).await.map(drop).unwrap_err();
        assert_eq!((status, &body["error"]["code"]), (StatusCode::UNAUTHORIZED, &json!(101)), "{body}");
        let bearer = format!("Bearer {token}");
        let listed = format!("fanout.v1, fanout.token.{token}");
        let query = format!("/ws/chat:room-1?token={token}");
        let mut by_header =
            node.try_connect("/ws/chat:room-1", &[("authorization", &bearer)]).await.expect("by header");
        let mut by_list = node
            .try_connect("/ws/chat:room-1", &[("sec-websocket-protocol", &listed)])
            .await
            .expect("by list");
        let mut by_query = node.try_connect(&query, &[]).await.expect("by query");
        assert!(by_list.json().await.get("connected").is_some());
        assert!(by_list.json().await.get("subscribed").is_some());
        by_header.send("1").await;
        assert_eq!(by_query.text().await, "1");
        assert_eq!(by_list.json().await["pub"]["data"], 1);
        let other = [("authorization", bearer.as_str())];
        let (status, _) = node.try_connect("/ws/chat:hall", &other).await.map(drop).unwrap_err();
        assert_eq!(status, StatusCode::FORBIDDEN, "the token does not list it");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_is_refused_with_the_check_that_it_failed_and_not_a_word_of_it() {
    with_sidecar(Setup::open(), async |node| {
        let expired = token(&json!({"sub": "ann", "exp": now() - 60}));
        let forged = format!("{}x", token(&json!({"sub": "ann"})));
        for (token, part) in
            [(expired.as_str(), "`exp`"), (&forged, "signature"), ("nonsense", "not a JSON Web Token")]
        {
            let bearer = format!("Bearer {token}");
            let answer = node.try_connect("/ws/lobby", &[("authorization", &bearer)]).await;
            let (status, body) = answer.map(drop).unwrap_err();
            assert_eq!(status, StatusCode::UNAUTHORIZED);
            let message = body["error"]["message"].as_str().unwrap();
            assert!(message.contains(part) && !message.contains(token), "{message}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_a_code_of_its_own_when_its_token_does() {
    with_sidecar(Setup::open(), async |node| {
        // Within the five seconds of leeway the token is good, and its connection too.
        let token = token(&json!({"sub": "ann", "exp": now() - 3, "grants": ["chat:*"]}));
        let mut client =
            node.try_connect(&format!("/ws/chat:room-1?token={token}"), &[]).await.expect("in time");
        assert_eq!(client.closed().await, (3005, "token expired after=0 jitter=15000".to_owned()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_connects_from_allowed_origins_only() {
    with_sidecar(Setup::open(), async |node| {
        for (origin, good) in [
            ("https://app.example.com", true),
            ("https://example.com", false),
            ("https://app.example.com.evil.test", false),
            ("null", false),
        ] {
            let answer = node.try_connect("/ws/lobby", &[("origin", origin)]).await.map(drop);
            assert_eq!(answer.is_ok(), good, "{origin}");
            let stream =
                http().get(node.client_url("/sse/lobby")).header("origin", origin).send().await.unwrap();
            assert_eq!(stream.status().is_success(), good, "{origin}");
            let shared =
                stream.headers().get("access-control-allow-origin").map(|value| value.to_str().unwrap());
            assert_eq!(shared == Some(origin), good, "{origin}: {shared:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_keys_are_taken_from_either_header_and_follow_their_file() {
    with_sidecar(Setup::open(), async |node| {
        let call = async |name: &'static str, value: &str, url: String| {
            http().post(url).header(name, value).json(&json!({})).send().await.unwrap().status()
        };
        let url = || node.api_url("/api/info");
        assert_eq!(
            call("authorization", &format!("apikey {}", crate::support::KEY), url()).await,
            StatusCode::OK
        );
        assert_eq!(call("x-api-key", "wrong", url()).await, StatusCode::UNAUTHORIZED);
        fs::write(node.directory.path().join("key"), "old\nnew\n").unwrap();
        node.app.reload();
        node.until_metric("fanout_settings_reloads_total", 1.0).await;
        assert_eq!(call("x-api-key", "new", url()).await, StatusCode::OK);
        assert_eq!(call("x-api-key", "old", url()).await, StatusCode::OK);
        assert_eq!(call("x-api-key", crate::support::KEY, url()).await, StatusCode::UNAUTHORIZED);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_namespace_does_not_allow_is_told_and_the_connection_stays() {
    with_sidecar(Setup::open(), async |node| {
        let mut client = node.framed("/ws/lobby").await;
        client.json().await;
        let refused = async |client: &mut crate::support::Client, command: Value| {
            client.send_json(&command).await;
            client.json().await["error"]["code"].clone()
        };
        let publish = |channel: &str| json!({"publish": {"channel": channel, "data": 1, "id": "1"}});
        assert_eq!(refused(&mut client, publish("feed:news")).await, 103);
        assert_eq!(refused(&mut client, publish("cellar")).await, 102);
        assert_eq!(refused(&mut client, json!({"subscribe": {"channel": "chat:a"}})).await, 101);
        client.send_json(&json!({"subscribe": {"channel": "feed:news", "id": "2"}})).await;
        assert_eq!(client.json().await, json!({"subscribed": {"channel": "feed:news", "id": "2"}}));
        node.publish("feed:news", &json!("from the backend")).await;
        assert_eq!(client.json().await["pub"]["data"], "from the backend");
    })
    .await;
}

/// A token of this `kid`, signed with this secret.
fn signed(kid: &str, secret: &str, claims: &Value) -> String {
    let header = jsonwebtoken::Header { kid: Some(kid.to_owned()), ..jsonwebtoken::Header::default() };
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&header, claims, &key).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_removed_key_end_and_those_of_a_rotated_one_stay() {
    let files = tempfile::tempdir().unwrap();
    let [old, kept, new] =
        ["old", "kept", "new"].map(|name| format!("{name}: thirty-two bytes and some more"));
    let write = |name: &str, secret: &str| fs::write(files.path().join(name), secret).unwrap();
    write("a", &old);
    write("b", &kept);
    let key = |name: &str| json!({"kid": name, "algorithm": "HS256", "file": files.path().join(name)});
    let auth = |keys: Value| json!({"jwt": {"keys": keys}});
    with_sidecar(Setup::open().live("auth", auth(json!([key("a"), key("b")]))), async |node| {
        let claims = json!({"sub": "ann", "grants": ["chat:*"]});
        let connect = async |kid: &str, secret: &str| {
            let path = format!("/ws/chat:room-1?token={}", signed(kid, secret, &claims));
            node.try_connect(&path, &[]).await
        };
        let mut of_a = connect("a", &old).await.expect("its key is there");
        let mut of_b = connect("b", &kept).await.expect("its key is there");
        let mut anonymous = node.connect("/ws/lobby").await;
        // A new value under the same name.
        write("b", &new);
        node.until_metric("fanout_settings_reloads_total", 1.0).await;
        let _late = connect("b", &kept).await.expect("the old value is good for a while");
        let _new = connect("b", &new).await.expect("and so is the new one");
        // An entry that goes.
        node.write_live(&{
            let mut live = node.live.clone();
            live["auth"] = auth(json!([key("b")]));
            live.to_string()
        });
        assert_eq!(of_a.closed().await.0, 3005);
        let (status, body) = connect("a", &old).await.map(drop).unwrap_err();
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{body}");
        of_b.send("still here").await;
        assert_eq!(of_b.text().await, "still here");
        anonymous.send("so am I").await;
        assert_eq!(anonymous.text().await, "so am I");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_framed_connection_renews_its_token_and_goes_by_it() {
    with_sidecar(Setup::open(), async |node| {
        let of = |user: &str, seconds: u64, grants: Value| {
            token(&json!({"sub": user, "exp": now() + seconds, "grants": grants}))
        };
        let first = of("ann", 2, json!(["chat:a", "chat:b"]));
        let path = format!("/ws?channel=chat:a&channel=chat:b&token={first}");
        let mut client = node.framed(&path).await;
        client.json().await;
        client.json().await;
        let ask = async |client: &mut crate::support::Client, token: &str| {
            client.send_json(&json!({"refresh": {"token": token, "id": "1"}})).await;
            client.json().await
        };
        for (bad, part) in [
            ("nonsense".to_owned(), "not a JSON Web Token"),
            (of("eve", 60, json!(["chat:*"])), "another user"),
        ] {
            let answer = ask(&mut client, &bad).await;
            assert_eq!((&answer["error"]["code"], &answer["error"]["id"]), (&json!(101), &json!("1")));
            assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
        }
        let answer = ask(&mut client, &of("ann", 60, json!(["chat:b", "chat:c"]))).await;
        assert_eq!(answer, json!({"refreshed": {"id": "1"}}));
        // What the new one does not list ends, what it lists opens, and the old one's end is none.
        assert_eq!(client.json().await["error"]["channel"], "chat:a");
        assert_eq!(client.json().await["unsubscribed"]["channel"], "chat:a");
        client.send_json(&json!({"subscribe": {"channel": "chat:c"}})).await;
        assert_eq!(client.json().await["subscribed"]["channel"], "chat:c");
        tokio::time::sleep(std::time::Duration::from_secs(8)).await;
        node.publish("chat:b", &json!("past the first token's end")).await;
        assert_eq!(client.json().await["pub"]["data"], "past the first token's end");
    })
    .await;
}
