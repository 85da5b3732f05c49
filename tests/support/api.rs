//! The HTTPS API with its document: each answer is held against it.

use std::{fmt, sync::Arc, time::Duration};

use carillon_wire::{
    frame::{self, FRAMES_TYPE},
    idl,
};
use data_encoding::BASE64;
use reqwest::{Method, header::CONTENT_TYPE};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    openapi::{Answered, Document},
    support::{APP, AppCredentials, Device, Node, Options},
};

/// Small bounds, so that the test need not wait or send much.
const CONFIG: &str = r#"
[api]
head_timeout_ms = 1000
request_timeout_ms = 1000
body_bytes_max = 65536
devices_per_address_per_minute = 40

[limits.allowance]
broadcasts_per_day = 3000
"#;

pub const DEVICES: &str = "post /v1/devices";
pub const FRAMES: &str = "post /v1/frames";
pub const SEND: &str = "post /v1/apps/{app}/messages";
pub const BATCH: &str = "post /v1/apps/{app}/messages:batch";
pub const MESSAGE: &str = "get /v1/apps/{app}/messages/{id}";
pub const TAKE_BACK: &str = "delete /v1/apps/{app}/messages/{id}";
pub const SCHEDULED: &str = "get /v1/apps/{app}/scheduled";
pub const ACCEPT: &str = "put /v1/apps/{app}/registrations/{regid}/accept";
pub const ACCEPT_ALWAYS: &str = "delete /v1/apps/{app}/registrations/{regid}/accept";
pub const DESCRIBE: &str = "put /v1/apps/{app}/registrations/{regid}/attributes";
pub const TOPIC: &str = "get /v1/apps/{app}/topics/{topic}";
pub const MEMBERS: &str = "get /v1/apps/{app}/topics/{topic}/members";
pub const TRACE: &str = "get /v1/apps/{app}/messages/{id}/trace";
pub const REGISTRATION: &str = "get /v1/apps/{app}/registrations/{regid}";
pub const UNREGISTER: &str = "delete /v1/apps/{app}/registrations/{regid}";
pub const BIND: &str = "put /v1/apps/{app}/registrations/{regid}/aliases/{alias}";
pub const UNBIND: &str = "delete /v1/apps/{app}/registrations/{regid}/aliases/{alias}";
pub const FOLLOW: &str = "put /v1/apps/{app}/registrations/{regid}/topics/{topic}";
pub const UNFOLLOW: &str = "delete /v1/apps/{app}/registrations/{regid}/topics/{topic}";
pub const INVALID: &str = "get /v1/apps/{app}/feedback/invalid";
pub const SUBSCRIBE: &str = "post /v1/apps/{app}/topics/{topic}:subscribe";
pub const UNSUBSCRIBE: &str = "post /v1/apps/{app}/topics/{topic}:unsubscribe";
pub const DECLARE: &str = "put /v1/apps/{app}/collections/{collection}";
pub const DECLARED: &str = "get /v1/apps/{app}/collections/{collection}";
pub const END: &str = "delete /v1/apps/{app}/collections/{collection}";
pub const CHANGE: &str = "post /v1/apps/{app}/aliases/{alias}/changes";
pub const LIST_CHANGES: &str = "get /v1/apps/{app}/aliases/{alias}/changes";
pub const SHOW_SNAPSHOT: &str = "get /v1/apps/{app}/aliases/{alias}/snapshot";

/// A running node, its document, and who asks.
pub struct Api {
    pub node: Node,
    pub client: reqwest::Client,
    pub document: Document,
    pub app: AppCredentials,
    pub other: AppCredentials,
    pub device: Device,
    pub bearer: String,
    pub failures: Vec<String>,
}

/// A request; it bears the demo app's secret unless it says otherwise.
#[derive(Clone)]
pub struct Ask {
    pub method: Method,
    pub path: String,
    pub body: Option<Vec<u8>>,
    pub content_type: String,
    pub credential: Option<String>,
    pub key: Option<String>,
}

impl Ask {
    pub fn new(method: Method, path: &str) -> Self {
        let (path, content_type) = (path.to_owned(), String::new());
        Self { method, path, body: None, content_type, credential: None, key: None }
    }

    pub fn get(path: &str) -> Self {
        Self::new(Method::GET, path)
    }

    pub fn post(path: &str, body: Value) -> Self {
        Self::post_bytes(path, body.to_string().as_bytes())
    }

    pub fn put(path: &str, body: Value) -> Self {
        Self { method: Method::PUT, ..Self::post(path, body) }
    }

    pub fn post_bytes(path: &str, body: &[u8]) -> Self {
        let content_type = "application/json".to_owned();
        Self { body: Some(body.to_vec()), content_type, ..Self::new(Method::POST, path) }
    }

    /// A device's frames.
    pub fn frames(device: &Device, body: &[u8]) -> Self {
        let content_type = FRAMES_TYPE.to_owned();
        Self { content_type, ..Self::post_bytes("/v1/frames", body) }.bearing(&basic(device))
    }

    pub fn send(message: Value) -> Self {
        Self::post("/v1/apps/demo/messages", message)
    }

    pub fn bearing(self, credential: &str) -> Self {
        Self { credential: Some(credential.to_owned()), ..self }
    }

    /// With an `Idempotency-Key`.
    pub fn keyed(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }

    pub fn nobody(self) -> Self {
        self.bearing("")
    }
}

/// A device's credential.
pub fn basic(device: &Device) -> String {
    let pair = format!("{}:{}", device.device_id, device.secret);
    format!("Basic {}", BASE64.encode(pair.as_bytes()))
}

/// A body of one `Resume`.
pub fn resume_body() -> Vec<u8> {
    let resume = Some(idl::Resume { digest: 0, dictionary: None });
    let (mut up, mut body) = (Vec::new(), Vec::new());
    frame::encode_up(&idl::Up { resume, ..frame::empty_up() }, &mut up).expect("it fits");
    frame::put_frame(&up, &mut body);
    body
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        let body = self.body.as_deref().unwrap_or_default();
        write!(f, " {}", String::from_utf8_lossy(&body[..body.len().min(100)]))
    }
}

impl Api {
    pub async fn start() -> Self {
        Self::start_with(CONFIG).await
    }

    pub async fn start_with(config: &str) -> Self {
        let options = Options { config: Some(config.to_owned()), ..Options::default() };
        let node = Node::start_with(options).await;
        let client = node.https_client();
        let url = format!("{}/openapi.json", node.https_url());
        let spec = client.get(url).send().await.unwrap().json().await.unwrap();
        let device = node.create_device().await;
        let other = node.create_app("other").await;
        let app = node.app().clone();
        let bearer = format!("Bearer {}", app.app_secret);
        Self {
            node,
            client,
            document: Document::new(spec),
            app,
            other,
            device,
            bearer,
            failures: Vec::new(),
        }
    }

    /// Asks, holds the answer against the document, and wants this status.
    pub async fn ask(&mut self, operation: &str, ask: Ask, status: u16) -> Value {
        let asked = ask.to_string();
        let (got, body) = self.any(operation, ask).await;
        self.want(got == status, || format!("{asked}: wanted {status}, got {got}: {body}"));
        body
    }

    /// Wants a problem of this code whose detail or field has these words.
    pub async fn problem(
        &mut self,
        operation: &str,
        ask: Ask,
        status: u16,
        code: &str,
        words: &str,
    ) {
        let asked = ask.to_string();
        let (got, body) = self.any(operation, ask).await;
        let said = format!("{} {}", body["detail"], body["field"]);
        let is = got == status && body["code"] == code && said.contains(words);
        self.want(is, || format!("{asked}: wanted {status} {code} `{words}`, got {body}"));
    }

    /// Asks and holds the answer against the document.
    pub async fn any(&mut self, operation: &str, ask: Ask) -> (u16, Value) {
        let asked = ask.to_string();
        let response = self.request(ask).await;
        self.check_response(operation, &asked, response).await
    }

    /// Holds a response against the document.
    pub async fn check_response(
        &mut self,
        operation: &str,
        asked: &str,
        response: reqwest::Response,
    ) -> (u16, Value) {
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = body_of(response).await;
        self.check(
            asked,
            &Answered {
                operation,
                status,
                content_type: headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap()),
                headers: headers.keys().map(|name| name.as_str()).collect(),
                body: &body,
            },
        );
        (status, body)
    }

    /// Holds an answer against the document.
    pub fn check(&mut self, asked: &str, answered: &Answered) {
        if let Err(why) = self.document.check(answered) {
            let Answered { operation, status, body, .. } = answered;
            self.failures.push(format!("{asked} ({operation}): {status}: {why}: {body}"));
        }
    }

    /// Notes a failure; the test goes on, to show all of them.
    pub fn want(&mut self, holds: bool, failure: impl FnOnce() -> String) {
        if !holds {
            self.failures.push(failure());
        }
    }

    pub async fn undocumented(&self, ask: Ask) -> (u16, Value) {
        let response = self.request(ask).await;
        (response.status().as_u16(), body_of(response).await)
    }

    pub async fn request(&self, ask: Ask) -> reqwest::Response {
        let url = format!("{}{}", self.node.https_url(), ask.path);
        let mut request = self.client.request(ask.method, url);
        match ask.credential.as_deref() {
            None => request = request.header("authorization", &self.bearer),
            Some("") => {}
            Some(other) => request = request.header("authorization", other),
        }
        if !ask.content_type.is_empty() {
            request = request.header(CONTENT_TYPE, ask.content_type);
        }
        if let Some(key) = ask.key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = ask.body {
            request = request.body(body);
        }
        request.send().await.expect("an answer")
    }

    /// A correct request of each operation that takes parameters.
    pub fn one_of_each(&self) -> Vec<(&'static str, Ask)> {
        let registration = format!("/v1/apps/demo/registrations/{}", self.device.regid);
        let (alias, topic) =
            (format!("{registration}/aliases/a"), format!("{registration}/topics/t"));
        let accept = format!("{registration}/accept");
        let message = "/v1/apps/demo/messages/aaaaaaaaaaaaaaaaaaaaaaaa";
        let trace = format!("{message}/trace?regid={}", self.device.regid);
        let regids = json!({"regids": [self.device.regid]});
        let batch = json!({"messages": [{"target": {"all": true}, "payload": 1}]});
        let collection = "/v1/apps/demo/collections/notes";
        let changes = json!({"changes": [{"collection": "notes", "key": "k", "value": 1}]});
        let account = json!({"app_id": APP, "app_key": self.app.app_key});
        vec![
            (DEVICES, Ask::post("/v1/devices", account)),
            (FRAMES, Ask::frames(&self.device, &resume_body())),
            (SEND, Ask::send(json!({"target": {"all": true}, "payload": 1}))),
            (BATCH, Ask::post("/v1/apps/demo/messages:batch", batch)),
            (MESSAGE, Ask::get(message)),
            (TAKE_BACK, Ask::new(Method::DELETE, message)),
            (SCHEDULED, Ask::get("/v1/apps/demo/scheduled")),
            (TRACE, Ask::get(&trace)),
            (INVALID, Ask::get("/v1/apps/demo/feedback/invalid")),
            (REGISTRATION, Ask::get(&registration)),
            (ACCEPT, Ask { method: Method::PUT, ..Ask::post(&accept, json!({"paused": false})) }),
            (ACCEPT_ALWAYS, Ask::new(Method::DELETE, &accept)),
            (DESCRIBE, Ask::put(&format!("{registration}/attributes"), json!({"locale": "de"}))),
            (TOPIC, Ask::get("/v1/apps/demo/topics/t")),
            (MEMBERS, Ask::get("/v1/apps/demo/topics/t/members")),
            (UNREGISTER, Ask::new(Method::DELETE, &registration)),
            (BIND, Ask::new(Method::PUT, &alias)),
            (UNBIND, Ask::new(Method::DELETE, &alias)),
            (FOLLOW, Ask::new(Method::PUT, &topic)),
            (UNFOLLOW, Ask::new(Method::DELETE, &topic)),
            (SUBSCRIBE, Ask::post("/v1/apps/demo/topics/t:subscribe", regids.clone())),
            (UNSUBSCRIBE, Ask::post("/v1/apps/demo/topics/t:unsubscribe", regids)),
            (DECLARE, Ask::put(collection, json!({"rule": "newest"}))),
            (DECLARED, Ask::get(collection)),
            (END, Ask::new(Method::DELETE, collection)),
            (CHANGE, Ask::post("/v1/apps/demo/aliases/a/changes", changes)),
            (LIST_CHANGES, Ask::get("/v1/apps/demo/aliases/a/changes")),
            (SHOW_SNAPSHOT, Ask::get("/v1/apps/demo/aliases/a/snapshot")),
        ]
    }

    pub async fn registration_of_the_other_app(&self) -> String {
        let made = self.node.cli(&["device", "create", "--app", "other"]).await;
        let row = made.lines().nth(1).expect("a device in CSV");
        row.rsplit(',').next().expect("a regid").to_owned()
    }

    /// Announces a body of this length, sends some of it, and gives everything that the node says
    /// until it ends the connection.
    pub async fn raw(&self, ask: &Ask, length: u64, header: &str, body: &[u8]) -> String {
        let mut stream = self.open().await;
        let head = format!(
            "{} {} HTTP/1.1\r\nhost: localhost\r\nauthorization: {}\r\n\
             content-type: {}\r\ncontent-length: {length}\r\n{header}\r\n",
            ask.method,
            ask.path,
            ask.credential.as_ref().unwrap_or(&self.bearer),
            ask.content_type,
        );
        stream.write_all(head.as_bytes()).await.expect("the node reads a head");
        stream.write_all(body).await.expect("the node reads the beginning of a body");
        String::from_utf8(read_to_end(&mut stream).await).expect("UTF-8")
    }

    /// A raw TLS connection to the API.
    pub async fn open(&self) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.node.ca_file()).unwrap()).unwrap();
        let config =
            rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let address = self.node.listen().https;
        let name = ServerName::from(address.ip());
        let stream = TcpStream::connect(address).await.unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }
}

async fn body_of(response: reqwest::Response) -> Value {
    let text = response.text().await.expect("a whole answer");
    match text.as_str() {
        "" => Value::Null,
        _ => serde_json::from_str(&text).unwrap_or(Value::String(text)),
    }
}

/// Everything until the node ends the connection, which it must.
pub async fn read_to_end(stream: &mut TlsStream<TcpStream>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes));
    // Some errors are an end, too: the node need not say good-bye to a slow peer.
    let _ = reading.await.expect("the node ends a slow connection");
    bytes
}

/// A call with a key: one at a time, answered again, not for another body.
pub async fn once(api: &mut Api) {
    let message = json!({"target": {"topic": "once"}, "payload": 1});
    let batch = json!({"messages": [message]});
    for (operation, path, body) in
        [(SEND, "/v1/apps/demo/messages", message), (BATCH, "/v1/apps/demo/messages:batch", batch)]
    {
        let mut statuses = Vec::new();
        for turn in 0..200 {
            let ask = Ask::post(path, body.clone())
                .keyed(&format!("{operation} {turn}").replace(' ', "_"));
            let both =
                futures_util::future::join(api.request(ask.clone()), api.request(ask.clone()));
            let (one, other) = both.await;
            statuses = vec![one.status().as_u16(), other.status().as_u16()];
            for answer in [one, other] {
                api.check_response(operation, &ask.to_string(), answer).await;
            }
            if statuses.contains(&409) {
                let other = Ask::post(path, json!({"target": {"all": true}, "payload": 2}));
                let other = if operation == BATCH {
                    Ask { body: Some(b"{\"messages\":[1]}".to_vec()), ..other }
                } else {
                    other
                };
                let other = Ask { key: ask.key, ..other };
                api.problem(operation, other, 422, "idempotency_key_reused", "").await;
                break;
            }
        }
        api.want(statuses.contains(&409), || format!("{operation}: no call waited for another"));
    }
}
