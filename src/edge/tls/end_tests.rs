//! What a client sends along with the end of its handshake, in one piece and in many.

use std::{
    io::{Read as _, Write as _},
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection,
    pki_types::ServerName,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::timeout,
};

use super::{tests::ends, *};

/// A client whose records go when they are told to.
struct Client {
    tls: ClientConnection,
    pipe: DuplexStream,
}

impl Client {
    /// A client that has shaken hands, as far as it knows: its own end of it is still here.
    async fn about_to_finish(mut config: ClientConfig, pipe: DuplexStream) -> Self {
        config.max_fragment_size = Some(FRAGMENT_BYTES);
        let name = ServerName::try_from("localhost").unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut client = Self { tls, pipe };
        while client.tls.is_handshaking() {
            client.send().await;
            client.receive().await;
        }
        client
    }

    /// Writes what there is in one piece.
    async fn send(&mut self) {
        let mut records = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut records).unwrap();
        }
        self.pipe.write_all(&records).await.unwrap();
    }

    async fn receive(&mut self) {
        let mut records = [0; 4_096];
        let count = self.pipe.read(&mut records).await.unwrap();
        assert!(count > 0, "the server ended it");
        let mut rest = &records[..count];
        while !rest.is_empty() {
            self.tls.read_tls(&mut rest).unwrap();
            self.tls.process_new_packets().unwrap();
        }
    }

    async fn read_exact(&mut self, count: usize) -> Vec<u8> {
        let mut read = vec![0; count];
        let mut at = 0;
        while at < count {
            match self.tls.reader().read(&mut read[at..]) {
                Ok(more) => at += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.receive().await,
                Err(error) => panic!("{error}"),
            }
        }
        read
    }

    fn write(&mut self, data: &[u8]) {
        self.tls.writer().write_all(data).unwrap();
    }
}

/// Both to their end. In paused time, the deadline passes once both wait for each other.
async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let ended = timeout(Duration::from_secs(60), async { tokio::join!(a, b) }).await;
    ended.expect("they wait for each other")
}

/// Keys change, data, keys change, data and perhaps the end, in the pieces that a pipe takes.
async fn all_at_once(pipe_bytes: usize, is_ended: bool) {
    let ends = ends(&TLS13);
    let (near, far) = duplex(pipe_bytes);
    let server = async {
        let mut server = TlsStream::accept(near, ends.server.clone()).await.unwrap();
        let mut read = [0; 9];
        server.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"onetwosix");
        if is_ended {
            assert_eq!(server.read(&mut read).await.unwrap(), 0, "the end is heard");
        }
        server.write_all(b"answer").await.unwrap();
        server.flush().await.unwrap();
        assert!(server.held.is_none(), "nothing is kept");
        // The keys go on from here.
        if !is_ended {
            server.read_exact(&mut read[..4]).await.unwrap();
            assert_eq!(&read[..4], b"more");
        }
        server
    };
    let client = async {
        let mut client = Client::about_to_finish(ends.client_config(), far).await;
        client.tls.refresh_traffic_keys().unwrap();
        client.write(b"one");
        client.write(b"two");
        client.tls.refresh_traffic_keys().unwrap();
        client.write(b"six");
        if is_ended {
            client.tls.send_close_notify();
        }
        client.send().await;
        assert_eq!(client.read_exact(6).await, b"answer");
        if !is_ended {
            client.write(b"more");
            client.send().await;
        }
        client
    };
    both(server, client).await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_with_the_end_of_the_handshake_is_read() {
    for pipe_bytes in [1 << 20, 1, 2, 3, 7, 19, 20, 21, 22, 23, 61, 200, 500, 1_000] {
        for is_ended in [false, true] {
            all_at_once(pipe_bytes, is_ended).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tls_1_2_reads_it_too() {
    let ends = ends(&TLS12);
    // All but the first are resumed, and end with the client's word.
    for pipe_bytes in [1 << 20, 1, 7, 61] {
        let (near, far) = duplex(pipe_bytes);
        let server = async {
            let mut server = TlsStream::accept(near, ends.server.clone()).await.unwrap();
            let mut read = [0; 6];
            server.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"onetwo");
            server
        };
        let client = async {
            let mut client = Client::about_to_finish(ends.client_config(), far).await;
            client.write(b"one");
            client.write(b"two");
            client.send().await;
            client
        };
        both(server, client).await;
    }
}

#[tokio::test(start_paused = true)]
async fn damage_right_behind_the_handshake_is_told_and_ends_it() {
    let ends = ends(&TLS13);
    let (near, far) = duplex(1 << 20);
    let client = async {
        let mut client = Client::about_to_finish(ends.client_config(), far).await;
        let mut records = Vec::new();
        client.write(b"spoilt");
        while client.tls.wants_write() {
            client.tls.write_tls(&mut records).unwrap();
        }
        *records.last_mut().unwrap() ^= 1;
        client.pipe.write_all(&records).await.unwrap();
        let mut heard = Vec::new();
        client.pipe.read_to_end(&mut heard).await.unwrap();
        client.tls.read_tls(&mut heard.as_slice()).unwrap();
        client.tls.process_new_packets()
    };
    let (accepted, heard) = both(TlsStream::accept(near, ends.server.clone()), client).await;
    assert!(accepted.is_err());
    let alert = rustls::AlertDescription::BadRecordMac;
    assert_eq!(heard.unwrap_err(), rustls::Error::AlertReceived(alert));
}

/// So that messages of the handshake span records. What rustls takes at least is 32.
const FRAGMENT_BYTES: usize = 64;
