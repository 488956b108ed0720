//! Authorization and parsing of HTTP requests.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, Request, header},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::error::ApiError;
use crate::{
    auth::Auth,
    domain::{Object, unmarked},
};

/// Bytes that a body may have beyond its message, such as the channel names of a broadcast.
const AROUND_MESSAGE: usize = 1_024 * 1_024;

/// Time allowed for a body to arrive; backends are nearby.
const BODY_TIME: Duration = Duration::from_secs(10);

/// Returns the maximum size of a body that carries a message of `max_message` bytes. Base64 needs 4 bytes for 3; JSON
/// escapes need 6 bytes for 1 at worst and 2 for 1 in practice.
pub(super) fn max_bytes(max_message: u32) -> usize {
    2 * max_message as usize + AROUND_MESSAGE
}

/// Checks that the call carries a valid API key.
pub(super) fn authorize(auth: &Auth, headers: &HeaderMap) -> Result<(), ApiError> {
    if auth.api_key(key(headers)) { Ok(()) } else { Err(ApiError::Unauthorized) }
}

/// Returns the key from `X-API-Key: k` or, as sent by older clients, from `Authorization: apikey k`.
fn key(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    text("x-api-key").or_else(|| {
        let (scheme, key) = text(header::AUTHORIZATION.as_str())?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("apikey").then(|| key.trim())
    })
}

/// Reads and parses the body.
pub(super) async fn read<T: DeserializeOwned>(request: Request<Body>, max: usize) -> Result<T, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::MediaType);
    }
    if !is_plain(request.headers()) {
        return Err(ApiError::ContentCoding);
    }
    let Ok(body) = timeout(BODY_TIME, Limited::new(request.into_body(), max).collect()).await else {
        let text = format!("the body did not arrive within {} seconds", BODY_TIME.as_secs());
        return Err(ApiError::BadRequest(text));
    };
    let bytes = match body {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Err(ApiError::BodyTooLarge { max }),
        Err(error) => return Err(ApiError::BadRequest(format!("the body did not arrive: {error}"))),
    };
    // Centrifugo's clients send nothing where a method needs nothing.
    let bytes = if bytes.is_empty() { "{}".into() } else { bytes };
    match serde_json::from_slice(unmarked(&bytes)) {
        Ok(Object(request)) => Ok(request),
        Err(error) => Err(ApiError::BadRequest(error.to_string())),
    }
}

/// Returns `true` if the body has no content coding: a compressed one would be read as broken JSON.
fn is_plain(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(header::CONTENT_ENCODING);
    codings.iter().all(|coding| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_arrive_is_not_waited_for() {
        let body = Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
        let request = Request::builder().header("content-type", "application/json").body(body).unwrap();
        let error = read::<serde_json::Value>(request, 100).await.unwrap_err();
        assert!(error.to_string().contains("within 10 seconds"), "{error}");
    }

    async fn read_body(body: &[u8], coding: Option<&str>) -> Result<serde_json::Value, ApiError> {
        let mut request = Request::builder().header("content-type", "application/json");
        if let Some(coding) = coding {
            request = request.header("content-encoding", coding);
        }
        read(request.body(Body::from(body.to_vec())).unwrap(), 100).await
    }

    #[tokio::test]
    async fn a_body_is_one_object_with_or_without_a_mark_and_not_compressed() {
        let empty = Ok(serde_json::json!({}));
        assert_eq!(read_body(b"{}", None).await, empty);
        assert_eq!(read_body(b"", Some("Identity")).await, empty);
        assert_eq!(read_body(b"\xEF\xBB\xBF{}", None).await, empty);
        for body in [&b"[]"[..], b"[\"lobby\", 1]", b"null", b"7", b"\"{}\""] {
            let error = read_body(body, None).await.unwrap_err();
            assert!(error.to_string().contains("expected an object"), "{error}");
        }
        for coding in ["gzip", "br", "gzip, identity", ""] {
            assert_eq!(read_body(b"{}", Some(coding)).await, Err(ApiError::ContentCoding), "{coding}");
        }
    }

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        [(header::HeaderName::from_static(name), header::HeaderValue::from_static(value))]
            .into_iter()
            .collect()
    }

    #[test]
    fn a_key_comes_in_either_header() {
        assert_eq!(key(&headers("x-api-key", "k")), Some("k"));
        assert_eq!(key(&headers("authorization", "apikey k")), Some("k"));
        assert_eq!(key(&headers("authorization", "ApiKey  k")), Some("k"));
        assert_eq!(key(&headers("authorization", "Bearer k")), None);
        assert_eq!(key(&HeaderMap::new()), None);
    }

    #[test]
    fn json_is_known_by_its_media_type_whatever_its_parameters() {
        for (value, good) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
            ("application/jsonp", false),
        ] {
            assert_eq!(is_json(&headers("content-type", value)), good, "{value}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
