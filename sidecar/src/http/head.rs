//! What every request must satisfy before it is looked at (RFC 9112 §3.2 and §6.1, RFC 6455 §4.2.1): a proxy in front may
//! read an ambiguous one in another way than we do. For the ports of clients and of backends alike.

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, Version, header, request::Parts, uri::Authority};

use super::error::RequestError;

/// Headers of which there is one, or which of them counts would be a guess.
const SINGLE: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::ORIGIN,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    HeaderName::from_static("x-api-key"),
];

/// These routes, for requests whose heads are in order.
pub fn checked<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes.layer(from_fn(async |request: Request<Body>, next: Next| -> Response {
        let (parts, body) = request.into_parts();
        match check(&parts) {
            Ok(()) => next.run(Request::from_parts(parts, body)).await,
            Err(error) => error.into_response(),
        }
    }))
}

fn check(parts: &Parts) -> Result<(), RequestError> {
    let headers = &parts.headers;
    // HTTP/2 has `:authority`, and HTTP/1.0 nothing.
    if parts.version == Version::HTTP_11 {
        check_host(headers)?;
    }
    let many = |name: &&HeaderName| headers.get_all(*name).iter().nth(1).is_some();
    if let Some(name) = SINGLE.iter().find(many) {
        return Err(RequestError::Repeated(name.clone()));
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(RequestError::TransferCoding),
    }
}

fn check_host(headers: &HeaderMap) -> Result<(), RequestError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => Err(RequestError::Host("is missing")),
        (Some(_), Some(_)) => Err(RequestError::Host("is given more than once")),
        // Empty where the target has no authority.
        (Some(host), None) if host.is_empty() => Ok(()),
        (Some(host), None) => match host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()) {
            Some(host) if !host.as_str().contains('@') => Ok(()),
            _ => Err(RequestError::Host("is no host: write a name or an address, and perhaps a port")),
        },
    }
}

/// A request that opens something has no body: what one holds would be read as the first frames, or by nobody.
pub(super) fn check_no_body(headers: &HeaderMap) -> Result<(), RequestError> {
    let length = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if length || headers.contains_key(header::TRANSFER_ENCODING) { Err(RequestError::Body) } else { Ok(()) }
}

/// Percent-decoded text of `part`; a plus stands for itself.
pub(super) fn decoded(text: &str, part: &'static str) -> Result<String, RequestError> {
    let bad = || RequestError::Encoding(part);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        if first == b'%' {
            let (digits, behind) = behind.split_at_checked(2).ok_or_else(bad)?;
            let digit = |at: usize| char::from(digits[at]).to_digit(16).ok_or_else(bad);
            bytes.push((digit(0)? * 16 + digit(1)?) as u8);
            rest = behind;
        } else {
            bytes.push(first);
            rest = behind;
        }
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked_head(headers: &[(&'static str, &'static str)]) -> Result<(), RequestError> {
        let mut request = http::Request::builder().uri("/ws/a");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn a_host_is_there_once_and_is_one() {
        for host in ["a", "a:80", "[::1]:80", "", "10.0.0.1"] {
            assert_eq!(checked_head(&[("host", host)]), Ok(()), "{host}");
        }
        for host in ["a b", "a/b", "user@a", "a:b:c"] {
            assert!(matches!(checked_head(&[("host", host)]), Err(RequestError::Host(_))), "{host}");
        }
        assert!(matches!(checked_head(&[]), Err(RequestError::Host("is missing"))));
        assert!(checked_head(&[("host", "a"), ("host", "a")]).is_err());
    }

    #[test]
    fn what_would_be_a_guess_is_refused() {
        for name in ["authorization", "origin", "sec-websocket-key", "content-type", "x-api-key"] {
            let error = checked_head(&[("host", "a"), (name, "x"), (name, "x")]).unwrap_err();
            assert_eq!(error.to_string(), format!("the header `{name}` is given more than once"));
        }
        assert_eq!(checked_head(&[("host", "a"), ("transfer-encoding", "Chunked")]), Ok(()));
        for coding in ["gzip, chunked", "gzip", "identity", "chunked, chunked"] {
            let error = checked_head(&[("host", "a"), ("transfer-encoding", coding)]);
            assert_eq!(error, Err(RequestError::TransferCoding), "{coding}");
        }
    }

    #[test]
    fn a_percent_stands_before_two_digits_of_utf8() {
        assert_eq!(decoded("a%20b+%C3%a9", "path").as_deref(), Ok("a b+é"));
        for text in ["%", "%2", "%zz", "%+1", "%ff", "a%C3"] {
            assert_eq!(decoded(text, "path"), Err(RequestError::Encoding("path")), "{text}");
        }
    }
}
