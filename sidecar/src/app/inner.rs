//! The two inner ports, for backends, probes and scrapers: HTTP/1.1, with bounds on what a caller holds that never
//! finishes what it began.

use std::{net::SocketAddr, pin::pin, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo, serve::Listener};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::{
    http::{Asked, Gate, Place, Wire},
    shard::network_of,
};

/// Bytes of a request that wait to be understood, its head included.
const BUFFER: usize = 64 * 1_024;

/// What callers of a port may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections at a time; further ones wait in the system's queue, and those that ask for nothing make room.
    pub(super) connections: u32,
    /// For the head of a request, the pause since the one before included.
    pub(super) patience: Duration,
    /// Whether a caller that has sent its end still gets its answer. Where an answer may take long, nobody would see that
    /// its caller is gone.
    pub(super) half_close: bool,
}

/// Serves a router until `shutdown`, then answers what it has taken.
pub(super) async fn serve(
    listener: std::net::TcpListener,
    router: Router,
    bounds: Bounds,
    shutdown: CancellationToken,
) {
    let Bounds { connections, .. } = bounds;
    let mut listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "failed to serve a port"),
    };
    let (gate, tasks) = (Gate::default(), TaskTracker::new());
    loop {
        let next = async {
            let (socket, peer) = Listener::accept(&mut listener).await;
            let place = gate.wait(|| connections, Some(network_of(peer.ip())), || {}).await;
            (socket, peer, place)
        };
        let (socket, peer, place) = tokio::select! {
            next = next => next,
            () = shutdown.cancelled() => break,
        };
        let conversation = converse(socket, peer, place.clone(), router.clone(), bounds, shutdown.clone());
        tasks.spawn(async move { place.hold(conversation).await });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn converse(
    socket: TcpStream,
    peer: SocketAddr,
    place: Place,
    router: Router,
    bounds: Bounds,
    shutdown: CancellationToken,
) {
    let Bounds { connections: _, patience, half_close } = bounds;
    let asked = Asked::default();
    let wire = Wire::new(socket, asked.clone());
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        if half_close {
            asked.count();
        }
        request.extensions_mut().insert(ConnectInfo(peer));
        let (answering, answer) = (place.answering(), router.clone().oneshot(request.map(Body::new)));
        async move {
            // Until its last byte was taken.
            let held = move |frame| {
                let _ = &answering;
                frame
            };
            answer.await.map(|answer| answer.map(|body| body.map_frame(held)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(wire), service);
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, caller.addr = %peer, "call aborted");
    }
}
