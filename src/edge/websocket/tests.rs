//! The stream, beside the library's client.

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use super::*;

/// A masked frame of so many bytes that mean nothing.
fn masked(first: u8, count: u8) -> Vec<u8> {
    let mut frame = vec![first, 0x80 | count, 0, 0, 0, 0];
    frame.resize(6 + usize::from(count), b'x');
    frame
}

#[tokio::test]
async fn bytes_pass_both_ways_in_the_library_s_frames() {
    // So little room that every write is cut.
    let (near, far) = duplex(777);
    let echo = async {
        let (mut stream, mut buffer) = (WsStream::over(near, 100_000), vec![0; 5_000]);
        loop {
            let count = stream.read(&mut buffer).await.unwrap();
            if count == 0 {
                return stream.shutdown().await;
            }
            stream.write_all(&buffer[..count]).await.unwrap();
            stream.flush().await.unwrap();
        }
    };
    let client = async {
        let client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let (mut to, mut from) = client.split();
        let sent: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
        let talk = async {
            to.send(Message::Ping(vec![9].into())).await.unwrap();
            for part in sent.chunks(70_001) {
                to.send(Message::Binary(part.to_vec().into())).await.unwrap();
            }
        };
        let listen = async {
            let (mut heard, mut pongs) = (Vec::new(), 0);
            while heard.len() < sent.len() {
                match from.next().await.unwrap().unwrap() {
                    Message::Binary(part) => heard.extend_from_slice(&part),
                    Message::Pong(_) => pongs += 1,
                    other => panic!("{other:?}"),
                }
            }
            (heard, pongs)
        };
        let ((), (heard, pongs)) = tokio::join!(talk, listen);
        assert!(heard == sent && pongs == 1);
        to.close().await.unwrap();
        assert!(matches!(from.next().await, Some(Ok(Message::Close(_)))));
    };
    let (echoed, ()) = tokio::join!(echo, client);
    echoed.unwrap();
}

#[tokio::test]
async fn who_pings_and_does_not_read_is_owed_one_answer() {
    let (near, mut far) = duplex(64);
    let mut stream = WsStream::over(near, 100_000);
    let flood = async {
        for _ in 0..10_000 {
            far.write_all(&masked(0x89, 125)).await.unwrap();
        }
        far.write_all(&masked(0x82, 1)).await.unwrap();
    };
    let mut most = 0;
    let read = std::future::poll_fn(|cx| {
        let mut buffer = [0; 300];
        let mut buffer = ReadBuf::new(&mut buffer);
        // As a connection does, which counts them.
        stream.reader.extras = 0;
        let read = Pin::new(&mut stream).poll_read(cx, &mut buffer);
        most = most.max(stream.outgoing.len());
        read.map_ok(|()| buffer.filled().len())
    });
    let (read, ()) = tokio::join!(read, flood);
    assert_eq!(read.unwrap(), 1);
    assert!(most <= 127, "{most} bytes wait");
    assert!(stream.reader.owes_answer(), "to the newest one");
}

#[tokio::test]
async fn extras_that_nobody_counts_end_it() {
    for extra in [masked(0x89, 0), masked(0x8A, 5), masked(0x82, 0)] {
        let (near, mut far) = duplex(64);
        let flood = async {
            for _ in 0..10_000 {
                if far.write_all(&extra).await.is_err() {
                    return;
                }
            }
            panic!("nobody minds");
        };
        let read = async {
            let mut stream = WsStream::over(near, 100_000);
            stream.read_u8().await.unwrap_err().kind()
        };
        let (kind, ()) = tokio::join!(read, flood);
        assert_eq!(kind, io::ErrorKind::InvalidData);
    }
}
