//! The accept loop: options of a socket, PROXY header, then hyper with bounded buffers.

use std::{
    future::Future,
    io::{self, Write},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use super::{
    ClientPort, Peer,
    gate::{Pace, Place},
    proxy_protocol,
};
use crate::shard::Rules;

/// Out of descriptors: one is free again when some connection ends, and until then a try costs a wake-up.
const PAUSE: Duration = Duration::from_millis(100);
/// Unsent bytes in the kernel beyond which a socket says that it is full: lag then lies in the shared log instead of
/// in megabytes of kernel memory for each slow client.
const NOTSENT_LOWAT: u32 = 16 * 1_024;
/// hyper takes no less.
const LEAST_BUFFER: usize = 8 * 1_024;

pub(super) async fn serve(
    port: &ClientPort,
    listener: std::net::TcpListener,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let (tasks, stopping, router) = (TaskTracker::new(), CancellationToken::new(), port.router());
    let mut stop = pin!(stop);
    port.set_accepting(true);
    let mut pace = Pace::new(port.door().rules().hub.limits.accepts_per_second, Instant::now());
    loop {
        let next = tokio::select! {
            () = &mut stop => break,
            next = next(port, &listener, &mut pace) => next,
        };
        if let Some((socket, peer)) = next {
            let rules = port.door().rules();
            // Before the system has none left: then nobody could be answered.
            let most = rules.hub.limits.handshakes_in_flight.min(port.door().room().max(1));
            match port.gate().enter(most) {
                Some(place) => {
                    tasks.spawn(converse(socket, peer, rules, router.clone(), stopping.clone(), place));
                }
                None => {
                    port.metrics().refused("handshakes");
                    turn_away(socket);
                }
            }
        }
    }
    port.set_accepting(false);
    drop(listener);
    stopping.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// The next client, at the pace of the settings; none where one could not be accepted.
async fn next(port: &ClientPort, listener: &TcpListener, pace: &mut Pace) -> Option<(TcpStream, SocketAddr)> {
    let error = match listener.accept().await {
        Ok(client) => {
            let per_second = port.door().rules().hub.limits.accepts_per_second;
            if let Some(wait) = pace.take(per_second, Instant::now()) {
                port.metrics().waits.inc();
                sleep(wait).await;
            }
            return Some(client);
        }
        Err(error) => error,
    };
    if !is_of_client(&error) {
        tracing::warn!(%error, "no client can be accepted for the moment");
        port.metrics().pauses.inc();
        port.set_accepting(false);
        until_there_is_room(listener).await;
        port.set_accepting(true);
        tracing::info!("clients are accepted again");
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

/// Answers without reading: whoever is one too many costs nothing more.
fn turn_away(socket: TcpStream) {
    const ANSWER: &str = concat!(
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\nconnection: close\r\n",
        "content-type: application/json\r\ncontent-length: 81\r\n\r\n",
        r#"{"error":{"code":111,"message":"too many handshakes in flight, try again later"}}"#,
    );
    // What cannot be written at once is not written.
    if let Ok(mut socket) = socket.into_std() {
        drop(socket.write(ANSWER.as_bytes()));
    }
}

/// A client that was gone before it was accepted.
fn is_of_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

/// One connection, until it ends or becomes a WebSocket.
async fn converse(
    mut socket: TcpStream,
    peer: SocketAddr,
    rules: Arc<Rules>,
    router: Router,
    stopping: CancellationToken,
    place: Place,
) {
    let hub = &rules.hub;
    let header_timeout = Duration::from_secs(hub.limits.header_timeout_seconds.into());
    if let Err(error) = set_options(&socket) {
        tracing::debug!(%error, client.addr = %peer, "a client's socket takes no options");
        return;
    }
    let proxied = hub.trusted_proxies.iter().any(|network| network.contains(&peer.ip().to_canonical()));
    let peer = if proxied {
        match timeout(header_timeout, proxy_protocol::read(&mut socket, peer)).await {
            Ok(Ok(peer)) => peer,
            Ok(Err(error)) => {
                tracing::debug!(%error, client.addr = %peer, "a proxy sent a bad PROXY header");
                return;
            }
            Err(_) => return,
        }
    } else {
        peer
    };
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(place.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size((hub.limits.header_bytes as usize).max(LEAST_BUFFER))
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    // The rules that held at accept would otherwise live as long as an event stream.
    drop(rules);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, client.addr = %peer, "a request was cut short");
    }
}

fn set_options(socket: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    Ok(())
}
