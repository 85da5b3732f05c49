//! Records that a peer with the right keys should not send, and bytes of strangers.

use rustls::crypto::cipher::{AeadKey, Iv};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio_rustls::client;

use super::{
    super::{Layer, TlsStream, tests},
    *,
};

type Server = TlsStream<DuplexStream>;
type Client = client::TlsStream<DuplexStream>;

async fn connected() -> (Server, Client) {
    tests::connected(&tests::ends(&rustls::version::TLS13), 1 << 20).await
}

fn lean(server: &mut Server) -> &mut Lean {
    match &mut server.layer {
        Layer::Lean(lean) => lean,
        Layer::Driven(_) => panic!("TLS 1.3 is left to its keys"),
    }
}

/// What the peer seals with.
fn forger(lean: &Lean) -> Way {
    let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = &lean.theirs.secrets else {
        panic!("the clients of these tests prefer AES-256")
    };
    let key: [u8; 32] = key.as_ref().try_into().unwrap();
    let iv: [u8; NONCE_LEN] = iv.as_ref().try_into().unwrap();
    let secrets = ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from(key), iv: Iv::from(iv) };
    Way { secrets, seq: lean.theirs.seq }
}

/// What became of records: bytes taken, data, whether the end came, the answer.
struct Taken {
    result: io::Result<usize>,
    plain: Vec<u8>,
    is_closed: bool,
    answer: Vec<u8>,
}

fn take(lean: &mut Lean, mut records: Vec<u8>) -> Taken {
    let (mut held, mut is_closed) = (None, false);
    let mut into = ReadBuf::new(&mut []);
    let mut sink = Sink { into: &mut into, held: &mut held, is_read_closed: &mut is_closed };
    let result = lean.open(&mut records, &mut sink);
    let Held { plain, outgoing, .. } = held.map(|held| *held).unwrap_or_default();
    Taken { result, plain, is_closed, answer: outgoing }
}

fn sealed(forger: &mut Way, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![0; content.len() + OVERHEAD_BYTES];
    let count = forger.seal(kind, content, &mut out).unwrap();
    assert_eq!(count, out.len());
    out
}

/// One record with this content after a handshake.
async fn told(kind: u8, content: &[u8]) -> Taken {
    let (mut server, _client) = connected().await;
    let lean = lean(&mut server);
    let record = sealed(&mut forger(lean), kind, content);
    take(lean, record)
}

#[tokio::test]
async fn what_has_no_place_after_a_handshake_ends_the_connection_with_an_alert() {
    let long = vec![1; RECORD_BYTES + 1];
    let ticket = [4, 0, 0, 1, 0];
    let doubled = [KEY_UPDATE, 0, 0, 1, 0, KEY_UPDATE, 0, 0, 1, 0];
    let cases: [(u8, &[u8]); 9] = [
        (20, &[1]),
        (0, &[]),
        (0, &[0, 0]),
        (24, &[1]),
        (HANDSHAKE, &ticket),
        (HANDSHAKE, &[]),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 2]),
        (HANDSHAKE, &doubled),
        (APPLICATION_DATA, &long),
    ];
    for (kind, content) in cases {
        let taken = told(kind, content).await;
        assert!(taken.result.is_err(), "{kind} of {} bytes", content.len());
        assert_eq!((taken.plain.len(), taken.answer.len()), (0, OVERHEAD_BYTES + 2));
    }
}

#[tokio::test]
async fn alerts_of_the_peer_are_understood() {
    let closed = told(ALERT, &[WARNING, CLOSE_NOTIFY]).await;
    assert!(closed.result.is_ok() && closed.is_closed && closed.answer.is_empty());
    let fatal = told(ALERT, &[FATAL, 40]).await;
    assert!(fatal.result.is_err() && fatal.answer.is_empty(), "the peer knows why");
    let cancelled = told(ALERT, &[WARNING, USER_CANCELED]).await;
    assert!(cancelled.result.is_ok() && !cancelled.is_closed);
}

#[tokio::test]
async fn records_without_data_are_borne_for_a_while() {
    let (mut server, _client) = connected().await;
    let lean = lean(&mut server);
    let mut forger = forger(lean);
    for round in 0..3 {
        for _ in 0..IDLE_RECORDS_MAX {
            let empty = sealed(&mut forger, APPLICATION_DATA, &[]);
            assert!(take(lean, empty).result.is_ok(), "{round}");
        }
        let data = sealed(&mut forger, APPLICATION_DATA, b"data");
        assert_eq!(take(lean, data).plain, b"data");
    }
    let flood = (0..=IDLE_RECORDS_MAX).flat_map(|_| sealed(&mut forger, APPLICATION_DATA, &[]));
    assert!(take(lean, flood.collect()).result.is_err());
}

#[tokio::test]
async fn a_record_is_taken_whole_once_and_in_order() {
    let (mut server, _client) = connected().await;
    let lean = lean(&mut server);
    let mut forger = forger(lean);
    let (one, two) = (sealed(&mut forger, 23, b"one"), sealed(&mut forger, 23, b"two"));
    for cut in 0..one.len() {
        let taken = take(lean, one[..cut].to_vec());
        assert!(matches!(taken.result, Ok(0)) && taken.plain.is_empty(), "{cut}");
    }
    let both = take(lean, [one.clone(), two[..9].to_vec()].concat());
    assert_eq!((both.result.unwrap(), both.plain.as_slice()), (one.len(), &b"one"[..]));
    assert!(take(lean, one).result.is_err(), "a replay");
}

#[tokio::test]
async fn every_bit_counts() {
    let (mut server, _client) = connected().await;
    let lean = lean(&mut server);
    let record = sealed(&mut forger(lean), APPLICATION_DATA, b"to be read");
    for bit in 0..record.len() * 8 {
        let mut bent = record.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        let taken = take(lean, bent);
        // A length that grew waits for bytes that never come.
        let waits = (24..40).contains(&bit) && matches!(taken.result, Ok(0));
        assert!((taken.result.is_err() || waits) && taken.plain.is_empty(), "bit {bit}");
    }
    assert_eq!(take(lean, record).plain, b"to be read", "and nothing was used up");
}

#[tokio::test]
async fn bytes_of_strangers_end_the_connection_and_nothing_else() {
    let (mut server, _client) = connected().await;
    let lean = lean(&mut server);
    for case in 0..5_000usize {
        let mut bytes = [0; 64];
        aws_lc_rs::rand::fill(&mut bytes).unwrap();
        if case % 2 == 0 {
            bytes[..4].copy_from_slice(&[APPLICATION_DATA, 3, 3, 0]);
            bytes[4] %= 59;
        }
        let length = case % 65;
        let taken = take(lean, bytes[..length].to_vec());
        assert!(taken.plain.is_empty() && !taken.is_closed);
        assert!(taken.result.is_err() || taken.result.is_ok_and(|count| count == 0));
    }
}

#[tokio::test]
async fn who_asks_for_keys_and_never_reads_fills_no_memory() {
    let asked = told(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 1]).await;
    assert!(asked.result.is_ok() && asked.answer.is_empty(), "the answer goes with our next data");
}

#[tokio::test]
async fn keys_change_when_either_side_wants_it() {
    let (mut server, mut client) = connected().await;
    let mut read = [0; 4];
    for round in 0..5u8 {
        if round % 2 == 0 {
            client.get_mut().1.refresh_traffic_keys().unwrap();
        }
        client.write_all(&[round; 4]).await.unwrap();
        server.read_exact(&mut read).await.unwrap();
        assert_eq!(read, [round; 4]);
        if round > 1 {
            let Server { layer, held, .. } = &mut server;
            let Layer::Lean(lean) = layer else { panic!("it was lean") };
            lean.change_our_key(&mut held.get_or_insert_default().outgoing).unwrap();
        }
        server.write_all(&[round + 100; 4]).await.unwrap();
        server.flush().await.unwrap();
        client.read_exact(&mut read).await.unwrap();
        assert_eq!(read, [round + 100; 4]);
        assert!(server.held.is_none(), "nothing is kept");
    }
}

#[test]
fn it_is_as_small_as_documented() {
    // docs/MEMORY.md has this.
    println!("{} bytes", size_of::<Lean>());
    assert!(size_of::<Lean>() <= 704, "{}", size_of::<Lean>());
}
