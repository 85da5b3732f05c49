//! gzip and deflate around every call: answers for who accepts them, and bodies that come so.
//!
//! A body is unpacked while it is read, so the bound of its route holds for what comes out of it.

use axum::Router;
use tower_http::{
    compression::{CompressionLayer, predicate::SizeAbove},
    decompression::RequestDecompressionLayer,
};

/// Puts a router's answers and bodies into their encodings.
pub(super) fn around(router: Router) -> Router {
    // Another encoding is left as it is: whoever reads the body refuses it.
    let bodies =
        RequestDecompressionLayer::new().gzip(true).deflate(true).pass_through_unaccepted(true);
    let answers = CompressionLayer::new().gzip(true).deflate(true);
    router.layer(bodies).layer(answers.compress_when(SizeAbove::new(ANSWER_BYTES_MIN)))
}

/// A smaller answer fits a packet or two anyway.
const ANSWER_BYTES_MIN: u16 = 1_024;

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        time::Duration,
    };

    use axum::{
        body::{Body, to_bytes},
        extract::{DefaultBodyLimit, Request},
        http::{
            Response,
            header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY},
        },
        routing::{get, post},
    };
    use flate2::{
        Compression,
        read::{GzDecoder, ZlibDecoder},
        write::{GzEncoder, ZlibEncoder},
    };
    use tower::ServiceExt;

    use super::{
        super::{body::JsonBody, envelope::Envelope},
        *,
    };

    const BODY_BYTES_MAX: usize = 100_000;

    /// A door that says how many items came, and lists many.
    fn door() -> Router {
        let count = async |JsonBody(items): JsonBody<Vec<String>>| items.len().to_string();
        let router = Router::new()
            .route("/count", post(count))
            .route("/many", get(async || "registration ".repeat(2_000)))
            .route("/few", get(async || "registration"))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
        let request_timeout = Duration::from_secs(5);
        let body_bytes_max = BODY_BYTES_MAX;
        Envelope { request_timeout, body_bytes_max, metrics: None }.around(router)
    }

    async fn get_with(path: &str, accept: &str) -> Response<Body> {
        let request = Request::get(path).header(ACCEPT_ENCODING, accept).body(Body::empty());
        door().oneshot(request.unwrap()).await.unwrap()
    }

    async fn post_with(encoding: &str, body: Vec<u8>) -> (u16, String) {
        let request = Request::post("/count")
            .header(CONTENT_TYPE, "application/json")
            .header(CONTENT_ENCODING, encoding)
            .body(Body::from(body));
        let answer = door().oneshot(request.unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        (status, String::from_utf8(bytes_of(answer).await).unwrap())
    }

    async fn bytes_of(answer: Response<Body>) -> Vec<u8> {
        to_bytes(answer.into_body(), 1 << 20).await.unwrap().to_vec()
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::best());
        out.write_all(text).unwrap();
        out.finish().unwrap()
    }

    fn deflate(text: &[u8]) -> Vec<u8> {
        let mut out = ZlibEncoder::new(Vec::new(), Compression::best());
        out.write_all(text).unwrap();
        out.finish().unwrap()
    }

    #[tokio::test]
    async fn large_answers_are_packed_for_who_accepts_it() {
        let whole = "registration ".repeat(2_000);
        for accept in ["gzip", "deflate", "br;q=1, gzip;q=0.5"] {
            let answer = get_with("/many", accept).await;
            let encoding = answer.headers()[CONTENT_ENCODING].to_str().unwrap().to_owned();
            assert!(accept.contains(&encoding), "{encoding}");
            assert_eq!(answer.headers()[VARY], "accept-encoding");
            let bytes = bytes_of(answer).await;
            assert!(bytes.len() < 1_000, "{accept}: {} bytes", bytes.len());
            let mut text = String::new();
            match encoding.as_str() {
                "gzip" => GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap(),
                _ => ZlibDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap(),
            };
            assert_eq!(text, whole);
        }
        for (path, accept) in [("/many", "identity"), ("/many", "br"), ("/few", "gzip")] {
            let answer = get_with(path, accept).await;
            assert!(!answer.headers().contains_key(CONTENT_ENCODING), "{path} {accept}");
            assert!(bytes_of(answer).await.starts_with(b"registration"));
        }
    }

    #[tokio::test]
    async fn packed_bodies_are_read() {
        let text = br#"["a","b","c"]"#;
        assert_eq!(post_with("gzip", gzip(text)).await, (200, "3".to_owned()));
        assert_eq!(post_with("deflate", deflate(text)).await, (200, "3".to_owned()));
    }

    #[tokio::test]
    async fn a_bomb_is_refused_at_the_bound_of_the_route() {
        let bomb = [&b"["[..], &vec![b' '; 64 << 20], b"]"].concat();
        for (encoding, body) in [("gzip", gzip(&bomb)), ("deflate", deflate(&bomb))] {
            assert!(body.len() < BODY_BYTES_MAX, "small as it comes");
            let (status, text) = post_with(encoding, body).await;
            assert!(status == 413 && text.contains("body_too_large"), "{status}: {text}");
        }
        // A second one inside the first is only bytes that are not JSON.
        let (status, text) = post_with("gzip", gzip(&gzip(&bomb))).await;
        assert!(status == 400 && text.contains("invalid_request"), "{status}: {text}");
    }

    #[tokio::test]
    async fn broken_and_unknown_encodings_are_refused_with_words() {
        let whole = gzip(br#"["a"]"#);
        for broken in [&whole[..whole.len() - 6], b"[\"a\"]", b""] {
            let (status, text) = post_with("gzip", broken.to_vec()).await;
            assert!(status == 400 && text.contains("invalid_request"), "{status}: {text}");
        }
        let (status, text) = post_with("br", whole).await;
        assert!(status == 415 && text.contains("gzip"), "{status}: {text}");
    }
}
