//! How an app server knows that an event came from the gateway.

use std::fmt::Write;

use aws_lc_rs::{digest, hmac};

use crate::service::records::App;

/// The HTTP header of a callback with the time and the signatures over it.
pub const HEADER: &str = "carillon-signature";

/// The key under which callbacks are signed: it follows from the app secret, and the secret
/// does not follow from it. `docs/CALLBACKS.md` has test vectors.
pub fn key(app_secret: &str) -> [u8; 32] {
    let mut key = [0; 32];
    let text = format!("carillon callback {app_secret}");
    key.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    key
}

/// `t=<seconds since 1970>`, and a `v1=<hex>` for each live secret of the app: HMAC-SHA-256
/// over the digits of the time, a full stop and the body.
pub(super) fn header(app: &App, unix_s: u64, body: &[u8]) -> String {
    let mut text = format!("t={unix_s}");
    for secret in &app.secrets {
        text.push_str(",v1=");
        text.push_str(&sign(&secret.callback_key, unix_s, body));
    }
    text
}

/// One signature, in hex.
pub fn sign(key: &[u8; 32], unix_s: u64, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let mut context = hmac::Context::with_key(&key);
    context.update(unix_s.to_string().as_bytes());
    context.update(b".");
    context.update(body);
    let mut text = String::with_capacity(64);
    for byte in context.sign().as_ref() {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vector_of_the_documentation_holds() {
        let key = key("correct horse battery staple");
        let signed = sign(&key, 1_700_000_000, br#"{"app":"demo","events":[]}"#);
        assert_eq!(signed, "abbd05f4e96c31e9ee87a6cc553b55d52d1690d0246a10c28a6dbabb715cb257");
    }
}
