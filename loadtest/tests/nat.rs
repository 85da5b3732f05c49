//! The NAT box: what it passes, what it forgets, and that nobody hears of it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use carillon_loadtest::nat::NatBox;

/// A device and its server with the box between them.
fn flow() -> (NatBox, TcpStream, TcpStream) {
    let (nat, device, server, _) = flow_and_listener();
    (nat, device, server)
}

fn flow_and_listener() -> (NatBox, TcpStream, TcpStream, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nat = NatBox::start(listener.local_addr().unwrap(), LONG).unwrap();
    let mut device = TcpStream::connect(nat.addr()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    device.write_all(b"up").unwrap();
    server.write_all(b"down").unwrap();
    assert_eq!((read(&mut server, 2), read(&mut device, 4)), (b"up".to_vec(), b"down".to_vec()));
    (nat, device, server, listener)
}

fn read(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut room = vec![0; bytes];
    stream.read_exact(&mut room).unwrap();
    room
}

/// The event that a test waits for; a minute without it is a failure and no hang.
fn until(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(10), "it does not come");
        std::thread::yield_now();
    }
}

fn is_silent(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let nothing = stream.read(&mut [0; 16]);
    stream.set_nonblocking(false).unwrap();
    nothing.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn a_flow_that_lives_passes_everything_and_its_end() {
    let (nat, mut device, mut server) = flow();
    let many = vec![7; 3 << 20];
    let copy = many.clone();
    let writer = std::thread::spawn(move || {
        device.write_all(&copy).unwrap();
        device.shutdown(Shutdown::Write).unwrap();
        device
    });
    let mut all = Vec::new();
    server.read_to_end(&mut all).unwrap();
    assert_eq!(all, many);
    let mut device = writer.join().unwrap();
    server.write_all(b"bye").unwrap();
    drop(server);
    let mut rest = Vec::new();
    device.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"bye");
    assert_eq!((nat.flows_opened(), nat.flows_forgotten(), nat.bytes_dropped()), (1, 0, 0));
    assert_eq!(nat.bytes_passed(), 6 + many.len() as u64 + 3);
}

#[test]
fn a_forgotten_flow_swallows_both_directions_and_the_end() {
    let (nat, mut device, mut server) = flow();
    nat.set_forget_after(SHORT);
    until(|| nat.flows_forgotten() == 1);
    device.write_all(b"anybody").unwrap();
    server.write_all(b"hello").unwrap();
    until(|| nat.bytes_dropped() == 12);
    assert!(is_silent(&mut device) && is_silent(&mut server));
    drop(server);
    device.write_all(b"still").unwrap();
    until(|| nat.bytes_dropped() == 17);
    assert!(is_silent(&mut device), "the server's end is not told");
    assert_eq!((nat.flows_forgotten(), nat.bytes_passed()), (1, 6));
}

#[test]
fn a_network_may_shrink_and_a_new_flow_passes_again() {
    let (nat, mut device, _server, _listener) = flow_and_listener();
    assert_eq!(nat.flows_forgotten(), 0);
    nat.set_forget_after(SHORT);
    until(|| nat.flows_forgotten() == 1);
    assert!(is_silent(&mut device));
    nat.set_forget_after(LONG);
    // The server's backlog takes the second flow.
    let mut again = TcpStream::connect(nat.addr()).unwrap();
    again.write_all(b"new").unwrap();
    until(|| nat.bytes_passed() == 9);
    assert_eq!(nat.flows_forgotten(), 1);
}

#[test]
fn a_server_that_is_gone_closes_the_device() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nat = NatBox::start(gone, LONG).unwrap();
    let mut device = TcpStream::connect(nat.addr()).unwrap();
    assert!(matches!(device.read(&mut [0; 1]), Ok(0) | Err(_)));
}

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(20);
