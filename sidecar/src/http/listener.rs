//! The accept loop: options of a socket, PROXY header, then hyper with bounded buffers.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use axum::{Router, body::Body};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::{HttpService, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use super::{
    Asked, ClientPort, Peer, Wire,
    claim::Claim,
    gate::{Pace, Place},
    linger, proxy_protocol,
    streams::{Streams, Unused},
};
use crate::{
    auth::{H2, TlsIdentity},
    shard::{Rules, network_of},
};

/// Out of descriptors: one is free again when some connection ends, and until then a try costs a wake-up.
const PAUSE: Duration = Duration::from_millis(100);
/// Unsent bytes in the kernel beyond which a socket says that it is full: lag then lies in the shared log instead of
/// in megabytes of kernel memory for each slow client.
const NOTSENT_LOWAT: u32 = 16 * 1_024;
/// Streams of one HTTP/2 connection at a time: what browsers and proxies are used to (RFC 9113 §6.5.2 advises 100 or
/// more).
const MAX_STREAMS: u32 = 128;
/// Bytes on their way in one stream of HTTP/2, each direction: what a pipe holds.
const STREAM_BYTES: u32 = 16 * 1_024;
/// And to us in all streams of a connection together.
const CONNECTION_BYTES: u32 = 256 * 1_024;
/// Encrypted bytes that wait for a socket: a record's worth, not the 64 KiB that rustls would hold for each client that
/// reads nothing.
const TLS_BYTES: usize = 16 * 1_024;
/// hyper takes no less.
const LEAST_BUFFER: usize = 8 * 1_024;

pub(super) async fn serve(
    port: &ClientPort,
    listener: std::net::TcpListener,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    set_options(&listener)?;
    let mut given_up_after = Duration::ZERO;
    let listener = TcpListener::from_std(listener)?;
    let (tasks, stopping, router) = (TaskTracker::new(), CancellationToken::new(), port.router());
    let mut stop = pin!(stop);
    port.set_accepting(true);
    let mut pace = Pace::new(port.door().rules().hub.limits.accepts_per_second, Instant::now());
    loop {
        let after = give_up_after(&port.door().rules());
        if std::mem::replace(&mut given_up_after, after) != after {
            // Of those who come from now on.
            if let Err(error) = set_patience(&listener, after) {
                tracing::warn!(%error, "failed to set TCP timeouts, lost connections are detected later");
            }
        }
        let next = tokio::select! {
            () = &mut stop => break,
            next = next(port, &listener, &mut pace) => next,
        };
        if let Some((socket, peer, place)) = next {
            let conversation = Conversation {
                port: port.clone(),
                peer,
                rules: port.door().rules(),
                router: router.clone(),
                stopping: stopping.clone(),
                place,
            };
            tasks.spawn(conversation.hold(socket));
        }
    }
    port.set_accepting(false);
    drop(listener);
    stopping.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// The next client and its place, at the pace of the settings; none where one could not be accepted. While all places
/// are taken the others wait in the system's queue.
async fn next(
    port: &ClientPort,
    listener: &TcpListener,
    pace: &mut Pace,
) -> Option<(TcpStream, SocketAddr, Place)> {
    let error = match listener.accept().await {
        Ok(client) => {
            let per_second = port.door().rules().hub.limits.accepts_per_second;
            if let Some(wait) = pace.take(per_second, Instant::now()) {
                port.metrics().waits.inc();
                sleep(wait).await;
            }
            let (socket, peer) = client;
            let place = port.place(address_of(peer, &port.door().rules())).await;
            return Some((socket, peer, place));
        }
        Err(error) => error,
    };
    if !is_of_client(&error) {
        tracing::warn!(%error, "accepting connections failed, pausing");
        port.metrics().pauses.inc();
        port.set_accepting(false);
        until_there_is_room(listener).await;
        port.set_accepting(true);
        tracing::info!("accepting connections again");
    }
    None
}

/// Waits until the system gives descriptors again. That is tried out, for no client may come to a node that is not
/// ready.
async fn until_there_is_room(listener: &TcpListener) {
    loop {
        sleep(PAUSE).await;
        if SockRef::from(listener).try_clone().is_ok() {
            return;
        }
    }
}

/// Whose client it is, as far as that is known yet: behind a trusted proxy it is not.
fn address_of(peer: SocketAddr, rules: &Rules) -> Option<IpAddr> {
    (!is_trusted(peer, rules)).then(|| network_of(peer.ip()))
}

fn is_trusted(peer: SocketAddr, rules: &Rules) -> bool {
    rules.hub.trusted_proxies.iter().any(|network| network.contains(&peer.ip().to_canonical()))
}

/// A client that was gone before it was accepted.
fn is_of_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

/// One connection, until it ends or becomes a WebSocket.
struct Conversation {
    port: ClientPort,
    peer: SocketAddr,
    rules: Arc<Rules>,
    router: Router,
    stopping: CancellationToken,
    place: Place,
}

/// Reason for closing a connection early.
#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("a proxy sent a bad PROXY header: {0}")]
    Proxy(#[source] io::Error),
    #[error("the TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    #[error("the request did not arrive in time")]
    Late,
    #[error("nothing was received while other connections were waiting")]
    Idle,
    /// Told and counted by its shard.
    #[error("the client accepted no more bytes")]
    Stuck,
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Socket(#[from] io::Error),
}

impl Cut {
    /// Name for metrics, where it is the client that was refused.
    fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Proxy(_) => Some("proxy"),
            Self::Tls(_) => Some("tls"),
            Self::Late => Some("timeout"),
            Self::Idle => Some("handshakes"),
            // Answered by hyper itself.
            Self::Http(error) if error.is_parse_too_large() => Some("headers"),
            Self::Http(error) if error.is_parse() => Some("request"),
            Self::Http(error) if error.is_timeout() => Some("timeout"),
            Self::Stuck | Self::Http(_) | Self::Socket(_) => None,
        }
    }
}

impl Conversation {
    async fn hold(self, socket: TcpStream) {
        let (metrics, peer, place) = (self.port.metrics().clone(), self.peer, self.place.clone());
        let served = place.hold(linger::until_over(self.serve(socket))).await;
        if let Err(cut) = served.map_or(Err(Cut::Idle), |served| served.unwrap_or(Err(Cut::Stuck))) {
            if let Some(reason) = cut.reason() {
                metrics.refused(reason);
            }
            tracing::debug!(reason = %cut, client.addr = %peer, "connection closed early");
        }
    }

    async fn serve(self, mut socket: TcpStream) -> Result<(), Cut> {
        let Self { port, peer, rules, router, stopping, place } = self;
        let mut peer = peer;
        if is_trusted(peer, &rules) {
            let header = timeout(patience(&rules), proxy_protocol::read(&mut socket, peer));
            peer = header.await.map_err(|_| Cut::Late)?.map_err(Cut::Proxy)?;
            if let Some(address) = address_of(peer, &rules) {
                place.comes_from(address);
            }
        }
        let tls = port.tls();
        let claim = Claim::default();
        let claims = tls.is_none().then(|| claim.clone());
        let streams = tls.is_some().then(Streams::default);
        let carried = streams.clone();
        let asked = Asked::default();
        let (whole, tls_place) = (asked.clone(), place.clone());
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            whole.count();
            let extensions = request.extensions_mut();
            extensions.insert(Peer(peer));
            extensions.insert(place.clone());
            if let Some(claim) = &claims {
                extensions.insert(claim.clone());
            }
            if let Some(streams) = &carried {
                extensions.insert(streams.clone());
            }
            let (answering, answer) = (place.answering(), router.clone().oneshot(request.map(Body::new)));
            async move {
                let answer = answer.await;
                drop(answering);
                answer
            }
        });
        match (tls, streams) {
            (Some(identity), Some(streams)) => {
                // In a box: it is some kilobytes that a plain connection need not carry.
                let stream = shake_hands(socket, &identity, &rules, &tls_place).await?;
                // The next handshake may be by another certificate.
                drop(identity);
                Box::pin(serve_tls(stream, asked, service, port, rules, streams, stopping)).await
            }
            _ => serve_socket(Wire::new(socket, asked), service, rules, claim, stopping).await,
        }
    }
}

/// How long the head of a request is waited for.
fn patience(rules: &Rules) -> Duration {
    Duration::from_secs(rules.hub.limits.header_timeout_seconds.into())
}

/// HTTP/1.1 on a plain socket, until it ends or a handshake has claimed it.
async fn serve_socket<S>(
    socket: Wire<TcpStream>,
    service: S,
    rules: Arc<Rules>,
    claim: Claim,
    stopping: CancellationToken,
) -> Result<(), Cut>
where
    S: HttpService<Incoming, ResBody = Body, Error = Infallible>,
{
    let mut connection = http1(&rules).serve_connection(TokioIo::new(socket), service);
    // The rules that held at accept would otherwise live as long as an event stream.
    drop(rules);
    let mut stopping = pin!(stopping.cancelled_owned());
    let mut stops = false;
    let claimed = poll_fn(|context| {
        if !stops && stopping.as_mut().poll(context).is_ready() {
            stops = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        let ended = Pin::new(&mut connection).poll(context);
        match claim.take() {
            Some(claimed) => Poll::Ready(Ok(Some(claimed))),
            None => ended.map_ok(|()| None),
        }
    });
    if let Some(claimed) = claimed.await? {
        let http1::Parts { io, read_buf, .. } = connection.into_parts();
        claimed.hand_over(io.into_inner().into_inner().into_std()?, read_buf);
    }
    Ok(())
}

/// TLS with a client. Each of its messages is a word: whoever shakes hands is not silent.
async fn shake_hands(
    socket: TcpStream,
    identity: &TlsIdentity,
    rules: &Rules,
    place: &Place,
) -> Result<TlsStream<TcpStream>, Cut> {
    let accepted = async {
        socket.peek(&mut [0]).await.map_err(Cut::Socket)?;
        place.heard();
        let accepted = TlsAcceptor::from(identity.config()).accept(socket).await.map_err(Cut::Tls);
        place.heard();
        accepted
    };
    timeout(patience(rules), accepted).await.map_err(|_| Cut::Late)?
}

async fn serve_tls<S>(
    mut stream: TlsStream<TcpStream>,
    asked: Asked,
    service: S,
    port: ClientPort,
    rules: Arc<Rules>,
    streams: Streams,
    stopping: CancellationToken,
) -> Result<(), Cut>
where
    S: HttpService<Incoming, ResBody = Body, Error = Infallible>,
    S::Future: Send + 'static,
{
    let (_, session) = stream.get_mut();
    session.set_buffer_limit(Some(TLS_BYTES));
    if session.alpn_protocol() == Some(H2) {
        serve_http2(stream, service, &port, &rules, streams, stopping).await?;
    } else {
        serve_http1(Wire::new(stream, asked), service, rules, stopping).await?;
    }
    Ok(())
}

fn http1(rules: &Rules) -> http1::Builder {
    let limits = &rules.hub.limits;
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(patience(rules))
        .max_buf_size((limits.header_bytes as usize).max(LEAST_BUFFER));
    builder
}

async fn serve_http1<I, S>(
    io: I,
    service: S,
    rules: Arc<Rules>,
    stopping: CancellationToken,
) -> hyper::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = Body, Error = Infallible>,
{
    let connection = http1(&rules).serve_connection(TokioIo::new(io), service).with_upgrades();
    drop(rules);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = &mut connection => ended,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// HTTP/2: each stream is a request of its own, a WebSocket included (RFC 8441).
async fn serve_http2<I, S>(
    io: I,
    service: S,
    port: &ClientPort,
    rules: &Rules,
    streams: Streams,
    stopping: CancellationToken,
) -> hyper::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = Body, Error = Infallible>,
    S::Future: Send + 'static,
{
    let hub = &rules.hub;
    let connection = http2::Builder::new(linger::Tasks)
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(hub.limits.header_bytes)
        .initial_stream_window_size(STREAM_BYTES)
        .initial_connection_window_size(CONNECTION_BYTES)
        .max_send_buf_size(STREAM_BYTES as usize)
        .keep_alive_interval(Some(Duration::from_secs(hub.ping_interval_seconds.into())))
        .keep_alive_timeout(Duration::from_secs(hub.pong_timeout_seconds.into()))
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let unused = || streams.unused(patience(rules), || port.enter());
    tokio::select! {
        ended = &mut connection => return ended,
        () = stopping.cancelled() => {}
        unused = unused() => match unused {
            Unused::Late => {}
            // It is counted no more, so it must not be there any more.
            Unused::Crowded => return Ok(()),
        },
    }
    connection.as_mut().graceful_shutdown();
    // A client that does not answer that has no say in when it ends.
    tokio::select! {
        ended = connection => ended,
        _ = unused() => Ok(()),
    }
}

/// A peer that confirms nothing of what was sent to it, be it a comment in an event stream, is dead: its connection ends
/// then, and not after the quarter of an hour for which TCP tries again. Whoever is only slow is closed before, and told
/// why.
fn give_up_after(rules: &Rules) -> Duration {
    let hub = &rules.hub;
    let pong = hub.ping_interval_seconds + hub.pong_timeout_seconds;
    Duration::from_secs(pong.max(hub.limits.write_timeout_seconds).into()) + linger::LINGER
}

/// TCP asks by itself where nothing is sent.
fn set_patience<'a>(socket: impl Into<SockRef<'a>>, after: Duration) -> io::Result<()> {
    let socket = socket.into();
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(after))?;
    let interval = (after / 8).max(Duration::from_secs(1));
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(after / 2).with_interval(interval))
}

/// Accepted sockets have the options of their listener.
fn set_options(listener: &std::net::TcpListener) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use sidecar_config::LiveSettings;

    use super::*;
    use crate::domain::Policies;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_dead_peer_is_given_up_once_a_slow_one_would_have_been_closed() {
        let rules = |hub: &str| {
            let settings: LiveSettings = serde_yaml::from_str(&format!("hub: {hub}")).unwrap();
            let policies = Policies::new(&settings.namespaces);
            Rules { policies, hub: settings.hub, reconnect_jitter: Duration::ZERO }
        };
        let after = |hub: &str| give_up_after(&rules(hub)).as_secs();
        assert_eq!(after("{}"), 40, "ping and pong");
        assert_eq!(after("{limits: {writeTimeoutSeconds: 100}}"), 105);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for seconds in [7, 40, 105] {
            set_patience(&listener, Duration::from_secs(seconds)).unwrap();
            let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let accepted = SockRef::from(&accepted);
            assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(Duration::from_secs(seconds)));
            assert!(accepted.keepalive().unwrap());
            assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(seconds / 2));
        }
    }

    #[test]
    fn an_accepted_socket_sends_at_once_and_says_early_that_it_is_full() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        set_options(&listener).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(accepted.tcp_notsent_lowat().unwrap(), NOTSENT_LOWAT);
    }
}
