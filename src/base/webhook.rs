//! The one HTTP client for addresses that strangers chose: bounded, and it goes where it may.
//!
//! It follows no redirect, uses no proxy, and unless an operator allows private networks it
//! connects to public addresses only, whatever a name resolves to.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use reqwest::{
    Client, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::CONTENT_TYPE,
    redirect::Policy,
};

/// The longest URL, in bytes.
pub const URL_BYTES_MAX: usize = 1_024;
/// Bytes of an answer that are read, so that the connection can serve again.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Where requests may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// To public addresses, over TLS.
    Public,
    /// Also to private and loopback ones, there also without TLS.
    Private,
}

/// Posts to endpoints. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Webhook(Client);

/// Why a request had no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// None came in time.
    Timeout,
    /// There was no connection, or it broke.
    Unreachable,
}

impl Webhook {
    /// A client whose requests take `timeout` at most, answer included.
    ///
    /// # Errors
    /// If TLS cannot be set up, with the reason.
    pub fn new(reach: Reach, timeout: Duration) -> Result<Self, String> {
        // The default may be set already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .timeout(timeout)
            .connect_timeout(timeout)
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(Duration::from_secs(30))
            .dns_resolver(Resolver(reach))
            .build();
        client.map(Self).map_err(|error| error.to_string())
    }

    /// Posts JSON with headers; gives the status of the answer.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn post(
        &self,
        url: &str,
        headers: &[(&'static str, String)],
        body: Vec<u8>,
    ) -> Result<u16, Failure> {
        let mut request = self.0.post(url).header(CONTENT_TYPE, "application/json").body(body);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let mut answer = request.send().await.map_err(|error| failure(&error))?;
        let mut bytes = 0;
        while bytes <= ANSWER_BYTES_MAX {
            match answer.chunk().await {
                Ok(Some(chunk)) => bytes += chunk.len(),
                // The status has come: how the body ends does not matter.
                Ok(None) | Err(_) => break,
            }
        }
        Ok(answer.status().as_u16())
    }
}

fn failure(error: &reqwest::Error) -> Failure {
    if error.is_timeout() { Failure::Timeout } else { Failure::Unreachable }
}

/// Whether a URL may be called, as far as its text says.
///
/// # Errors
/// What a valid one looks like.
pub fn check(url: &str, reach: Reach) -> Result<(), &'static str> {
    const RULE: &str = "an https URL of a public host, without user, password and fragment";
    if url.len() > URL_BYTES_MAX {
        return Err("at most 1024 bytes");
    }
    let parsed = Url::parse(url).map_err(|_| RULE)?;
    let host = parsed.host_str().ok_or(RULE)?;
    if !parsed.username().is_empty() || parsed.password().is_some() || parsed.fragment().is_some() {
        return Err(RULE);
    }
    // An address in brackets is IPv6; the parser has made every way to write IPv4 one.
    let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    let name = host.trim_end_matches('.');
    let is_local = match address {
        Some(ip) => !is_public(ip),
        None => name == "localhost" || name.ends_with(".localhost"),
    };
    match (parsed.scheme(), reach) {
        ("https", Reach::Private) => Ok(()),
        ("http", Reach::Private) if is_local => Ok(()),
        ("http", Reach::Private) => Err("https, or http to a private or loopback address"),
        ("https", Reach::Public) if !is_local => Ok(()),
        ("https", Reach::Public) if address.is_some() => {
            Err("a public address; callbacks.allow_private allows others")
        }
        _ => Err(RULE),
    }
}

/// Whether an address belongs to the public internet.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let is_shared = a == 100 && (64..128).contains(&b);
    let is_protocol = a == 192 && b == 0 && c == 0;
    let is_benchmark = a == 198 && (b == 18 || b == 19);
    let is_relay = a == 192 && b == 88 && c == 99;
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_broadcast()
        || ip.is_documentation()
        || ip.is_multicast()
        || a == 0
        || a >= 240
        || is_shared
        || is_protocol
        || is_benchmark
        || is_relay)
}

/// Global unicast alone, without what embeds other addresses.
fn is_public_v6(ip: Ipv6Addr) -> bool {
    if let Some(mapped) = ip.to_ipv4_mapped() {
        return is_public_v4(mapped);
    }
    let [a, b, ..] = ip.segments();
    let is_global = a & 0xe000 == 0x2000;
    // Documentation, Teredo and others of 2001::/23, and 6to4.
    let is_special = a == 0x2001 && (b < 0x200 || b == 0xdb8) || a == 0x2002 || a == 0x3fff;
    is_global && !is_special
}

/// Names become addresses that may be reached, or none.
struct Resolver(Reach);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed = |addr: &SocketAddr| reach == Reach::Private || is_public(addr.ip());
            let addrs: Vec<SocketAddr> = found.filter(allowed).collect();
            if addrs.is_empty() {
                return Err(io::Error::other("no address that may be reached").into());
            }
            Ok(Box::new(addrs.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_public_may_be_called_unless_an_operator_says_so() {
        for url in [
            "http://example.org/",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://10.1.2.3/",
            "https://169.254.169.254/latest",
            "https://[fd00::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://0x7f000001/",
            "https://2130706433/",
            "https://localhost/",
            "https://user@example.org/",
            "https://example.org/#x",
            "ftp://example.org/",
            "example.org",
            "",
        ] {
            assert!(check(url, Reach::Public).is_err(), "{url}");
        }
        assert_eq!(check("https://example.org:8443/a?b=c", Reach::Public), Ok(()));
        assert_eq!(check("https://93.184.216.34/", Reach::Public), Ok(()));
        let long = format!("https://example.org/{}", "x".repeat(URL_BYTES_MAX));
        assert!(check(&long, Reach::Private).is_err());
        assert_eq!(check("http://127.0.0.1:8080/", Reach::Private), Ok(()));
        assert_eq!(check("https://10.0.0.1/", Reach::Private), Ok(()));
        assert!(check("http://example.org/", Reach::Private).is_err());
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_a_private_address_is_not_reached() {
        let webhook = Webhook::new(Reach::Public, Duration::from_secs(5)).unwrap();
        // The name is public as far as its text goes; the address behind it is not.
        let url = "https://localhost.:9/";
        assert_eq!(webhook.post(url, &[], Vec::new()).await, Err(Failure::Unreachable));
    }
}
