//! A tokio task for each connection; what it reads into is on the stack and gone before it waits.

use std::io::ErrorKind;
use std::net;

use tokio::net::{TcpListener, TcpStream};

use super::{Heard, answer};
use crate::mqtt;

/// Until the process ends.
pub(super) fn serve(listener: net::TcpListener) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                start(stream);
            }
        }
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the floor is the cost of a bare task, without an owner"
)]
fn start(stream: TcpStream) {
    tokio::spawn(connection(stream));
}

async fn connection(stream: TcpStream) {
    // Without it the floor is higher; nothing else depends on it.
    let _ = stream.set_nodelay(true);
    while stream.readable().await.is_ok() {
        if turn(&stream) == Turn::Ended {
            return;
        }
    }
}

#[derive(PartialEq, Eq)]
enum Turn {
    Goes,
    Ended,
}

/// Reads what is there and answers it. What the socket does not take at once is lost: answers are small.
fn turn(stream: &TcpStream) -> Turn {
    let mut room = [0; ROOM_BYTES];
    let read = match stream.try_read(&mut room) {
        Ok(0) => return Turn::Ended,
        Ok(read) => read,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Turn::Goes,
        Err(_) => return Turn::Ended,
    };
    let (mut done, mut out) = (0, Vec::new());
    while let Ok(Some((first, body, length))) = mqtt::whole(&room[done..read]) {
        done += length;
        if answer(first, body, &mut out) == Heard::Ended {
            return Turn::Ended;
        }
    }
    match stream.try_write(&out) {
        Ok(_) => Turn::Goes,
        Err(error) if error.kind() == ErrorKind::WouldBlock => Turn::Goes,
        Err(_) => Turn::Ended,
    }
}

const ROOM_BYTES: usize = 4 << 10;
