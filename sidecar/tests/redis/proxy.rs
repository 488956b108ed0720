//! A TCP proxy between node and Redis that a test can make misbehave.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

pub(crate) struct Proxy {
    pub(crate) port: u16,
    control: Arc<Control>,
}

struct Control {
    /// Where new connections go: alternately to the first and the second.
    targets: [AtomicU16; 2],
    /// What Redis says is read and thrown away.
    swallow: AtomicBool,
}

impl Proxy {
    pub(crate) async fn to(first: u16, second: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let targets = [AtomicU16::new(first), AtomicU16::new(second)];
        let control = Arc::new(Control { targets, swallow: AtomicBool::new(false) });
        tokio::spawn(serve(listener, Arc::clone(&control)));
        Self { port, control }
    }

    /// New connections all go here.
    pub(crate) fn point_to(&self, port: u16) {
        self.control.targets.iter().for_each(|target| target.store(port, Ordering::SeqCst));
    }

    /// Whether what Redis says is thrown away, on connections old and new.
    pub(crate) fn swallow(&self, swallow: bool) {
        self.control.swallow.store(swallow, Ordering::SeqCst);
    }
}

async fn serve(listener: TcpListener, control: Arc<Control>) {
    let mut number = 0;
    while let Ok((client, _)) = listener.accept().await {
        let port = control.targets[number % 2].load(Ordering::SeqCst);
        number += 1;
        let Ok(redis) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { continue };
        let (client_reader, client_writer) = client.into_split();
        let (redis_reader, redis_writer) = redis.into_split();
        tokio::spawn(pump(client_reader, redis_writer, None));
        tokio::spawn(pump(redis_reader, client_writer, Some(Arc::clone(&control))));
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, control: Option<Arc<Control>>) {
    let mut buffer = vec![0; 65_536];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let swallow = control.as_ref().is_some_and(|control| control.swallow.load(Ordering::SeqCst));
        if !swallow && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
