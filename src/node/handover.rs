//! Passing the listening sockets to the process that comes after this one.
//!
//! They go over `<data>/handover.sock`. The new process asks, gets the sockets, checks all
//! that it can, and says `go`; until then the old one serves as if nothing were. Then the
//! old one accepts nobody more, drains and ends, which frees the data directory; who connects
//! meanwhile waits in the backlog of sockets that never close.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

use crate::base::{net, tasks};

/// The old side: waits for a successor.
pub(super) struct Offer {
    path: PathBuf,
    waiting: JoinHandle<()>,
}

/// The old side, once it was told to go.
pub(super) struct Successor(UnixStream);

/// The new side: a process that goes on as long as it is not told to go.
pub(super) struct Predecessor {
    stream: UnixStream,
    /// What it listens on.
    pub(super) listeners: Vec<std::net::TcpListener>,
}

impl Offer {
    /// Offers the sockets to whoever may read the data directory. Where no socket can be
    /// made the node runs all the same; it cannot be taken over then.
    pub(super) fn make(
        data: &Path,
        doors: Vec<OwnedFd>,
    ) -> (Option<Self>, oneshot::Receiver<Successor>) {
        let (taken, heard) = oneshot::channel();
        let path = socket_path(data);
        match bind(&path) {
            Ok(socket) => {
                let waiting = tasks::spawn("handover", wait(socket, doors, taken));
                (Some(Self { path, waiting }), heard)
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "this node cannot be taken over");
                (None, heard)
            }
        }
    }
}

impl Drop for Offer {
    /// With it go our copies of the sockets: they must not stay open without anybody who
    /// accepts.
    fn drop(&mut self) {
        self.waiting.abort();
        drop(fs::remove_file(&self.path));
    }
}

impl Successor {
    /// Waits until it has ended.
    pub(super) async fn gone(&self) {
        let mut byte = [0];
        loop {
            match self.0.readable().await.and_then(|()| self.0.try_read(&mut byte)) {
                Ok(1..) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
            }
        }
    }
}

impl Predecessor {
    /// Asks the node that holds the data directory for its sockets.
    pub(super) async fn meet(data: &Path) -> anyhow::Result<Self> {
        let path = socket_path(data);
        let met = async {
            let mut stream = UnixStream::connect(&path).await?;
            stream.write_all(ASK).await?;
            let (answer, listeners) = net::receive_listeners(&stream).await?;
            anyhow::Ok((stream, answer, listeners))
        };
        let (stream, answer, listeners) = timeout(STEP_WAIT, met)
            .await
            .context("the running node does not answer")
            .flatten()
            .with_context(|| format!("{}: cannot take over", path.display()))?;
        ensure!(
            answer == TAKE,
            "{}: the running node does not hand over: it drains, or is of another version",
            path.display()
        );
        Ok(Self { stream, listeners })
    }

    /// From here on there is no way back: the old node drains and ends.
    pub(super) async fn go(mut self) -> anyhow::Result<UnixStream> {
        self.stream.write_all(GO).await.context("the node that was to be taken over has ended")?;
        Ok(self.stream)
    }
}

fn socket_path(data: &Path) -> PathBuf {
    data.join("handover.sock")
}

/// Whoever binds it holds the data directory, so that a socket which is there is a dead one.
fn bind(path: &Path) -> std::io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixListener::bind(path)?;
    // Until then the user of whoever connects is checked all the same.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(socket)
}

async fn wait(socket: UnixListener, doors: Vec<OwnedFd>, taken: oneshot::Sender<Successor>) {
    loop {
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a successor");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match hand_over(stream, &doors).await {
            Ok(successor) => {
                // Nobody listens any more: the node drains already.
                drop(taken.send(successor));
                return;
            }
            Err(error) => tracing::warn!("no hand-over, this node goes on: {error:#}"),
        }
    }
}

/// One try of a successor.
async fn hand_over(stream: UnixStream, doors: &[OwnedFd]) -> anyhow::Result<Successor> {
    ensure!(net::is_trusted(&stream), "a process of another user asked");
    expect(&stream, ASK, STEP_WAIT).await.context("no successor of this version asks")?;
    let doors: Vec<_> = doors.iter().map(AsFd::as_fd).collect();
    net::send_listeners(&stream, TAKE, &doors).await.context("cannot pass the listeners on")?;
    tracing::info!("a successor has the listeners and gets ready");
    expect(&stream, GO, GO_WAIT).await.context("the successor failed before it took over")?;
    Ok(Successor(stream))
}

/// Reads exactly these words.
async fn expect(stream: &UnixStream, words: &[u8], wait: Duration) -> anyhow::Result<()> {
    let mut read = Vec::new();
    let reading = async {
        while read.len() < words.len() {
            stream.readable().await?;
            match stream.try_read_buf(&mut read) {
                Ok(0) => bail!("it has ended"),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    };
    timeout(wait, reading).await.context("it says nothing")??;
    ensure!(read == words, "it says something else");
    Ok(())
}

/// Both sides know each other by these words; another version has others.
const ASK: &[u8] = b"carillon handover 1\n";
const TAKE: &[u8] = b"take\n";
const GO: &[u8] = b"go\n";
/// For an answer of the other process.
const STEP_WAIT: Duration = Duration::from_secs(5);
/// For what a successor checks before it says `go`.
const GO_WAIT: Duration = Duration::from_secs(30);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
