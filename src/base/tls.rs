//! Certificates: the operator's own, or ones from a local CA that is made at the first start.
//!
//! The local CA lives in `<data>/tls`: `ca.pem` is for clients to trust, `ca-key.pem`
//! stays. `server.pem` holds the issued chain and its key in one file, so that a
//! crash never leaves a pair that does not fit; its first line says for whom and
//! until when, and it is issued anew when either no longer serves.

use std::{
    collections::BTreeSet,
    fs, io,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::NoServerSessionStorage,
    version::{TLS12, TLS13},
};

use super::{clock::DAY_MS, keys};

/// What a listener speaks inside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// MQTT.
    Mqtt,
    /// HTTP/2 or HTTP/1.1.
    Http,
}

/// What a listener offers from now on; a reload puts another one in its place.
pub type Live = Arc<ArcSwap<ServerConfig>>;

/// A certificate chain with its private key.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// Where it came from, for errors.
    source: PathBuf,
}

/// TLS material that cannot be used; the text names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: no usable {what}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`, in PEM.
        what: &'static str,
        /// Why.
        #[source]
        cause: pem::Error,
    },
    /// The CA is there by half.
    #[error("{path} is missing beside ca.pem: restore it, or remove ca.pem to make a new CA")]
    NoCaKey {
        /// The key's file.
        path: PathBuf,
    },
    /// A certificate cannot be made.
    #[error("{path}: cannot issue a certificate")]
    Issue {
        /// The file that it was for.
        path: PathBuf,
        /// Why.
        #[source]
        cause: rcgen::Error,
    },
    /// Certificate and key cannot serve together.
    #[error("{path}: certificate and private key cannot be used")]
    Unusable {
        /// Where they came from.
        path: PathBuf,
        /// Why.
        #[source]
        cause: rustls::Error,
    },
}

impl Identity {
    /// Reads the operator's own certificate chain and key.
    ///
    /// # Errors
    /// [`Error`], with the path.
    pub fn read(certificate: &Path, private_key: &Path) -> Result<Self, Error> {
        Self::from_pem(certificate, &read(certificate)?, private_key, &read(private_key)?)
    }

    /// A certificate of the local CA in `dir` for localhost and these addresses.
    /// Makes the CA, if there is none, and the certificate, if there is none that
    /// fits or it ends soon.
    ///
    /// # Errors
    /// [`Error`], with the path.
    pub fn local(dir: &Path, addresses: &[IpAddr], now_ms: u64) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(|cause| Error::Io { path: dir.to_owned(), cause })?;
        let path = dir.join("server.pem");
        let names = names(addresses);
        let ca = Ca::load_or_create(dir, now_ms)?;
        let stored = match ca.is_new {
            true => None,
            false => read_if_there(&path)?.filter(|text| is_fitting(text, &names, now_ms)),
        };
        let text = match stored {
            Some(text) => text,
            None => {
                let text = ca.issue(&path, &names, now_ms)?;
                keys::write_private(&path, text.as_bytes())
                    .map_err(|cause| Error::Io { path: path.clone(), cause })?;
                text
            }
        };
        Self::from_pem(&path, &text, &path, &text)
    }

    fn from_pem(
        certificate: &Path,
        chain: &str,
        private_key: &Path,
        key: &str,
    ) -> Result<Self, Error> {
        let pem = |path: &Path, what| {
            let path = path.to_owned();
            move |cause| Error::Pem { path, what, cause }
        };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(pem(certificate, "certificate"))?;
        if chain.is_empty() {
            return Err(pem(certificate, "certificate")(pem::Error::NoItemsFound));
        }
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(pem(private_key, "private key"))?;
        Ok(Self { chain, key, source: certificate.to_owned() })
    }

    /// A server's configuration: TLS 1.3 and 1.2, one stateless ticket a handshake, no early data.
    ///
    /// # Errors
    /// [`Error::Unusable`], if key and certificate do not fit each other.
    pub fn server_config(&self, inside: Inside) -> Result<Arc<ServerConfig>, Error> {
        let unusable = |cause| Error::Unusable { path: self.source.clone(), cause };
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&TLS13, &TLS12])
                .map_err(unusable)?
                .with_no_client_auth()
                .with_single_cert(self.chain.clone(), self.key.clone_key())
                .map_err(unusable)?;
        let protocols: &[&[u8]] = match inside {
            Inside::Mqtt => &[b"mqtt"],
            Inside::Http => &[b"h2", b"http/1.1"],
        };
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(unusable)?;
        config.send_tls13_tickets = 1;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // Idle connections keep keys, not ciphers.
        config.enable_secret_extraction = inside == Inside::Mqtt;
        Ok(Arc::new(config))
    }
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    is_new: bool,
}

impl Ca {
    fn load_or_create(dir: &Path, now_ms: u64) -> Result<Self, Error> {
        let (path, key_path) = (dir.join("ca.pem"), dir.join("ca-key.pem"));
        let issue = |cause| Error::Issue { path: path.clone(), cause };
        let stored_key = read_if_there(&key_path)?;
        let is_there = read_if_there(&path)?.is_some();
        let key = match stored_key {
            Some(text) => KeyPair::from_pem(&text)
                .map_err(|cause| Error::Issue { path: key_path.clone(), cause })?,
            None if is_there => return Err(Error::NoCaKey { path: key_path }),
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)?;
                keys::write_private(&key_path, key.serialize_pem().as_bytes())
                    .map_err(|cause| Error::Io { path: key_path.clone(), cause })?;
                key
            }
        };
        // The same parameters and key give the same name and key identifier: what
        // this issuer signs chains to the stored certificate.
        let params = ca_params(now_ms);
        if !is_there {
            let certificate = params.self_signed(&key).map_err(issue)?;
            write_public(&path, certificate.pem().as_bytes())
                .map_err(|cause| Error::Io { path: path.clone(), cause })?;
        }
        Ok(Self { issuer: Issuer::new(params, key), is_new: !is_there })
    }

    /// The text of `server.pem`.
    fn issue(&self, path: &Path, names: &BTreeSet<String>, now_ms: u64) -> Result<String, Error> {
        let issue = |cause| Error::Issue { path: path.to_owned(), cause };
        let list: Vec<String> = names.iter().cloned().collect();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)?;
        let mut params = CertificateParams::new(list).map_err(issue)?;
        params.distinguished_name.push(DnType::CommonName, "Carillon");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let until_ms = set_validity(&mut params, now_ms, SERVER_DAYS);
        let certificate = params.signed_by(&key, &self.issuer).map_err(issue)?;
        Ok(format!("{}{}{}", header(names, until_ms), certificate.pem(), key.serialize_pem()))
    }
}

fn ca_params(now_ms: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Carillon local CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now_ms, CA_DAYS);
    params
}

/// Valid from yesterday, because clocks differ. Returns the end in milliseconds since 1970.
fn set_validity(params: &mut CertificateParams, now_ms: u64, days: u64) -> u64 {
    let until_ms = now_ms + days * DAY_MS;
    let at = |ms| date_time_ymd(1970, 1, 1) + Duration::from_millis(ms);
    params.not_before = at(now_ms.saturating_sub(DAY_MS));
    params.not_after = at(until_ms);
    until_ms
}

fn names(addresses: &[IpAddr]) -> BTreeSet<String> {
    let fixed = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let bound = addresses.iter().filter(|address| !address.is_unspecified()).map(IpAddr::to_string);
    fixed.into_iter().chain(bound).collect()
}

/// PEM readers skip text outside the blocks; this is ours.
fn header(names: &BTreeSet<String>, until_ms: u64) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    format!("names={} until_ms={until_ms}\n", names.join(","))
}

fn is_fitting(text: &str, names: &BTreeSet<String>, now_ms: u64) -> bool {
    let first = text.lines().next().unwrap_or_default();
    let until_ms = first.rsplit_once("until_ms=").and_then(|(_, ms)| ms.parse::<u64>().ok());
    until_ms.is_some_and(|until_ms| {
        now_ms + RENEW_DAYS * DAY_MS < until_ms && header(names, until_ms).trim_end() == first
    })
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|cause| Error::Io { path: path.to_owned(), cause })
}

fn read_if_there(path: &Path) -> Result<Option<String>, Error> {
    match read(path) {
        Ok(text) => Ok(Some(text)),
        Err(Error::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// All or nothing, like a private file, but everybody may read it.
fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    keys::write_private(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

const CA_DAYS: u64 = 3_650;
const SERVER_DAYS: u64 = 397;
const RENEW_DAYS: u64 = 30;

#[cfg(test)]
mod tests {
    use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    const NOW_MS: u64 = 1_780_000_000_000;

    #[tokio::test]
    async fn a_client_that_trusts_the_ca_connects_by_name_and_address() {
        let dir = tempfile::tempdir().unwrap();
        let now_ms = super::super::clock::Clock::system().unix_ms();
        let identity =
            Identity::local(dir.path(), &["192.0.2.7".parse().unwrap()], now_ms).unwrap();
        let ca = CertificateDer::from_pem_file(dir.path().join("ca.pem")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca).unwrap();
        let mut client =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        client.alpn_protocols = vec![b"mqtt".to_vec()];
        let connector = TlsConnector::from(Arc::new(client));
        let acceptor = TlsAcceptor::from(identity.server_config(Inside::Mqtt).unwrap());
        for name in ["localhost", "127.0.0.1", "::1", "192.0.2.7"] {
            let (near, far) = tokio::io::duplex(1 << 16);
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let (server, client) =
                tokio::join!(acceptor.accept(far), connector.connect(name, near));
            assert_eq!(client.unwrap().get_ref().1.alpn_protocol(), Some(&b"mqtt"[..]));
            server.unwrap();
        }
    }

    #[test]
    fn a_certificate_stays_until_it_ends_soon_or_names_change() {
        let dir = tempfile::tempdir().unwrap();
        let chain = |addresses: &[IpAddr], now_ms| {
            Identity::local(dir.path(), addresses, now_ms).unwrap().chain[0].clone()
        };
        let first = chain(&[], NOW_MS);
        assert_eq!(chain(&["0.0.0.0".parse().unwrap()], NOW_MS + 366 * DAY_MS), first);
        assert_ne!(chain(&[], NOW_MS + 367 * DAY_MS), first);
        let named = chain(&["192.0.2.7".parse().unwrap()], NOW_MS);
        assert_ne!(named, first);
        for (file, mode) in [("ca.pem", 0o644), ("ca-key.pem", 0o600), ("server.pem", 0o600)] {
            let found = fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode, "{file}");
        }
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let text = |error: Error| error.to_string();
        let missing = dir.path().join("none.pem");
        assert!(text(Identity::read(&missing, &missing).unwrap_err()).contains("none.pem"));
        let empty = dir.path().join("empty.pem");
        fs::write(&empty, "nothing").unwrap();
        let error = text(Identity::read(&empty, &empty).unwrap_err());
        assert!(error.contains("empty.pem") && error.contains("certificate"), "{error}");
        Identity::local(dir.path(), &[], NOW_MS).unwrap();
        fs::remove_file(dir.path().join("ca-key.pem")).unwrap();
        assert!(text(Identity::local(dir.path(), &[], NOW_MS).unwrap_err()).contains("ca-key.pem"));
    }
}
