//! How a device reaches the gateway: TCP, TLS, or whatever a [`Connector`] makes of it.

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::store::BoxFuture;

/// A byte stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A [`Stream`] of any kind.
pub type BoxStream = Box<dyn Stream>;

/// Makes the byte streams over which a device speaks MQTT; called once for each attempt.
///
/// [`Endpoint`] is one; so is any closure that returns a future of a [`BoxStream`], such as one end of
/// `tokio::io::duplex` in a simulation.
pub trait Connector: Send + Sync + 'static {
    /// Opens one stream. The caller sets the deadline and drops the future at its end.
    fn connect(&self) -> BoxFuture<'_, io::Result<BoxStream>>;

    /// Opens one to another server, `host:port`, to which the gateway sends its devices. A connector that knows one
    /// way only goes that way.
    fn connect_to<'a>(&'a self, server: &'a str) -> BoxFuture<'a, io::Result<BoxStream>> {
        let _ = server;
        self.connect()
    }
}

impl<F, R> Connector for F
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = io::Result<BoxStream>> + Send + 'static,
{
    fn connect(&self) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(self())
    }
}

/// Where the gateway is: `tcp://host:port` or `tls://host:port`.
#[derive(Clone)]
pub struct Endpoint {
    host: String,
    port: u16,
    security: Security,
}

#[derive(Clone)]
enum Security {
    /// Readable by everybody on the way.
    Plain,
    /// TLS without any trust yet.
    NoRoots,
    /// TLS that trusts these.
    Tls(Arc<ClientConfig>),
}

/// Why an endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Not `tcp://host:port` or `tls://host:port`.
    #[error("an endpoint is tcp://host:port or tls://host:port")]
    Syntax,
    /// The file of root certificates cannot be read or has none.
    #[error("cannot read root certificates")]
    Roots(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (scheme, rest) = text.split_once("://").ok_or(EndpointError::Syntax)?;
        let security = match scheme {
            "tcp" => Security::Plain,
            "tls" => Security::NoRoots,
            _ => return Err(EndpointError::Syntax),
        };
        let (host, port) = host_and_port(rest).ok_or(EndpointError::Syntax)?;
        Ok(Self { host, port, security })
    }
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = port.parse().ok()?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

impl Endpoint {
    /// Trusts the certificates of a PEM file, and no others. Without effect for `tcp://`.
    ///
    /// # Errors
    /// The file cannot be read, or it has no certificate that is one.
    pub fn trust(mut self, pem: &Path) -> Result<Self, EndpointError> {
        if matches!(self.security, Security::Plain) {
            return Ok(self);
        }
        let refused = |error| EndpointError::Roots(error);
        let certificates = CertificateDer::pem_file_iter(pem).map_err(|e| refused(e.into()))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            let certificate = certificate.map_err(|e| refused(e.into()))?;
            roots.add(certificate).map_err(|e| refused(e.into()))?;
        }
        if roots.is_empty() {
            return Err(refused("no certificate in the file".into()));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| refused(e.into()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        self.security = Security::Tls(Arc::new(config));
        Ok(self)
    }

    async fn open(&self) -> io::Result<BoxStream> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let config = match &self.security {
            Security::Plain => return Ok(Box::new(tcp)),
            Security::NoRoots => return Err(io::Error::other("no root certificates are trusted")),
            Security::Tls(config) => config.clone(),
        };
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let tls = TlsConnector::from(config).connect(name, tcp).await?;
        Ok(Box::new(tls))
    }
}

impl Connector for Endpoint {
    fn connect(&self) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(self.open())
    }

    /// With the same security: over TLS it must show a certificate for its own name.
    fn connect_to<'a>(&'a self, server: &'a str) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move {
            let (host, port) =
                host_and_port(server).ok_or(io::Error::other("advice is host:port"))?;
            Self { host, port, security: self.security.clone() }.open().await
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.security {
            Security::Plain => "tcp",
            Security::NoRoots | Security::Tls(_) => "tls",
        };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}
