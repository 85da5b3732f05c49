//! The stream over TLS against a client of rustls, and what it holds while idle.

use rustls::{
    CipherSuite, ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    version::{TLS12, TLS13},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::base::tls::{Identity, Inside};

pub(super) struct Ends {
    pub(super) server: Arc<ServerConfig>,
    client: TlsConnector,
}

impl Ends {
    /// The client's side, to be changed.
    pub(super) fn client_config(&self) -> ClientConfig {
        ClientConfig::clone(self.client.config())
    }
}

pub(super) fn ends(version: &'static SupportedProtocolVersion) -> Ends {
    ends_with(version, |_| true)
}

fn ends_with(
    version: &'static SupportedProtocolVersion,
    offers: impl Fn(CipherSuite) -> bool,
) -> Ends {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::local(dir.path(), &[], 1_800_000_000_000).unwrap();
    let server = identity.server_config(Inside::Mqtt).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.path().join("ca.pem")).unwrap()).unwrap();
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| offers(suite.suite()));
    let mut client = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(AnyTime::of(roots))
        .with_no_client_auth();
    client.alpn_protocols = vec![b"mqtt".to_vec()];
    Ends { server, client: TlsConnector::from(Arc::new(client)) }
}

pub(super) type Pair = (TlsStream<DuplexStream>, client::TlsStream<DuplexStream>);

pub(super) async fn connected(ends: &Ends, pipe_bytes: usize) -> Pair {
    let (near, far) = duplex(pipe_bytes);
    let name = ServerName::try_from("localhost").unwrap();
    let (server, client) =
        tokio::join!(TlsStream::accept(near, ends.server.clone()), ends.client.connect(name, far));
    (server.unwrap(), client.unwrap())
}

fn sample(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 31 + i / 251) as u8).collect()
}

/// Both ways at once, through a pipe that takes little at a time.
async fn exchange(ends: &Ends, pipe_bytes: usize) {
    let (near, far) = duplex(pipe_bytes);
    let sent = sample(200_000);
    let client = async {
        let name = ServerName::try_from("localhost").unwrap();
        let client = ends.client.connect(name, far).await.unwrap();
        let (mut from_server, mut to_server) = tokio::io::split(client);
        let up = async {
            to_server.write_all(&sent).await.unwrap();
            to_server.shutdown().await.unwrap();
        };
        let mut echoed = Vec::new();
        let (down, ()) = tokio::join!(from_server.read_to_end(&mut echoed), up);
        down.unwrap();
        echoed
    };
    let serve = async {
        let mut server = TlsStream::accept(near, ends.server.clone()).await.unwrap();
        let (mut read, mut small) = (Vec::new(), [0; 700]);
        loop {
            let count = server.read(&mut small).await.unwrap();
            if count == 0 {
                break;
            }
            read.extend_from_slice(&small[..count]);
            server.write_all(&small[..count]).await.unwrap();
            server.flush().await.unwrap();
        }
        server.shutdown().await.unwrap();
        assert!(server.held.is_none(), "nothing is kept");
        read
    };
    let (echoed, read) = tokio::join!(client, serve);
    assert!(read == sent, "the server reads what was sent");
    assert!(echoed == sent, "the client reads what the server wrote");
}

#[tokio::test]
async fn data_goes_both_ways_in_both_versions_through_narrow_and_wide_pipes() {
    for version in [&TLS13, &TLS12] {
        for pipe_bytes in [61, 1_000, 1 << 20] {
            exchange(&ends(version), pipe_bytes).await;
        }
    }
}

#[tokio::test]
async fn each_cipher_suite_of_tls_1_3_is_served() {
    let suites = [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_AES_256_GCM_SHA384,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    for suite in suites {
        let ends = ends_with(&TLS13, |offered| offered == suite);
        let (_server, client) = connected(&ends, 1 << 16).await;
        let agreed = client.get_ref().1.negotiated_cipher_suite().map(|agreed| agreed.suite());
        assert_eq!(agreed, Some(suite));
        exchange(&ends, 1_000).await;
    }
}

#[tokio::test]
async fn a_connection_that_has_nothing_to_do_holds_no_buffer() {
    let (mut server, mut client) = connected(&ends(&TLS13), 1 << 16).await;
    client.write_all(b"ping").await.unwrap();
    let mut read = [0; 4];
    server.read_exact(&mut read).await.unwrap();
    server.write_all(b"pong").await.unwrap();
    client.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"pong");
    assert!(server.held.is_none());
}

#[tokio::test]
async fn a_second_handshake_is_resumed_by_ticket() {
    let ends = ends(&TLS13);
    for is_resumed in [false, true] {
        let (mut server, mut client) = connected(&ends, 1 << 16).await;
        // The ticket comes with the first data.
        server.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        let kind = client.get_ref().1.handshake_kind();
        assert_eq!(kind == Some(rustls::HandshakeKind::Resumed), is_resumed, "{kind:?}");
    }
}

#[tokio::test]
async fn who_speaks_no_tls_is_told_so() {
    let (near, mut far) = duplex(1 << 16);
    far.write_all(b"\x10\x0c\x00\x04MQTT\x05garbage garbage garbage").await.unwrap();
    assert!(TlsStream::accept(near, ends(&TLS13).server).await.is_err());
    let mut alert = Vec::new();
    far.read_to_end(&mut alert).await.unwrap();
    assert_eq!((alert[0], alert.len()), (21, 7), "one alert record");
}

#[tokio::test]
async fn a_flipped_bit_ends_the_connection_and_nothing_of_its_record_is_read() {
    let (near, far) = duplex(1 << 16);
    let (relay_near, mut relay_far) = duplex(1 << 16);
    let ends = ends(&TLS13);
    let name = ServerName::try_from("localhost").unwrap();
    let (mut near_read, mut near_write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(relay_near);
    let down = tokio::io::copy(&mut near_read, &mut far_write);
    let up = async {
        let mut buffer = [0; 4_096];
        let mut spoil = false;
        loop {
            let count = far_read.read(&mut buffer).await.unwrap();
            if count == 0 {
                return;
            }
            // The last record carries the text, which is all of a read once hands are shaken.
            spoil |= count == b"a secret text of some length".len() + 22;
            if spoil {
                buffer[count - 1] ^= 1;
            }
            near_write.write_all(&buffer[..count]).await.unwrap();
        }
    };
    let talk = async {
        let server = TlsStream::accept(far, ends.server.clone());
        let (server, client) = tokio::join!(server, ends.client.connect(name, &mut relay_far));
        let (mut server, mut client) = (server.unwrap(), client.unwrap());
        client.write_all(b"a secret text of some length").await.unwrap();
        client.flush().await.unwrap();
        let mut read = [0; 64];
        assert!(server.read(&mut read).await.is_err(), "it must not be read");
        assert_eq!(read, [0; 64]);
    };
    tokio::select! {
        () = talk => {}
        _ = down => panic!("the relay ended"),
        () = up => panic!("the relay ended"),
    }
}

/// Trusts the roots at any time: certificates of tests are made for a fixed one.
#[derive(Debug)]
struct AnyTime(Arc<rustls::client::WebPkiServerVerifier>);

impl AnyTime {
    fn of(roots: RootCertStore) -> Arc<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = Arc::new(roots);
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(roots, provider).build();
        Arc::new(Self(verifier.unwrap()))
    }
}

impl rustls::client::danger::ServerCertVerifier for AnyTime {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        let now = rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            1_800_000_100,
        ));
        self.0.verify_server_cert(end, between, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
