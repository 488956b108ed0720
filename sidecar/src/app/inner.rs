//! The two inner ports, for backends, probes and scrapers: HTTP/1.1, with bounds on what a caller holds that never
//! finishes what it began.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo, serve::Listener};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::http::{Asked, Wire};

/// Bytes of a request that wait to be understood, its head included.
const BUFFER: usize = 64 * 1_024;

/// What callers of a port may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections at a time; further ones wait in the system's queue.
    pub(super) connections: usize,
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
    let (places, tasks) = (Arc::new(Semaphore::new(connections)), TaskTracker::new());
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
            (place, Listener::accept(&mut listener).await)
        };
        let (place, (socket, peer)) = tokio::select! {
            next = next => next,
            () = shutdown.cancelled() => break,
        };
        let conversation = converse(socket, peer, router.clone(), bounds, shutdown.clone());
        tasks.spawn(async {
            conversation.await;
            drop(place);
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn converse(
    socket: TcpStream,
    peer: SocketAddr,
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
        router.clone().oneshot(request.map(Body::new))
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
        tracing::debug!(%error, caller.addr = %peer, "a call was cut short");
    }
}
