//! Every metric, one documented struct a plane.
//!
//! Names are `carillon_<noun>_<unit>_total`; labels come from enums only, never
//! from ids. A gauge has a counter pair beside it where one makes sense.

mod api;
mod collections;
pub mod engine;
mod longterm;
mod packing;
mod receipts;
mod seals;
mod sends;
pub mod timing;

use std::{collections::HashMap, hash::Hash, time::Duration};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::runtime::Handle;

mod skips;

pub use self::api::ApiMetrics;
pub use self::collections::{ChangeOutcome, CollectionMetrics, SnapshotReason};
use self::engine::EngineMetrics;
pub use self::longterm::LongTermMetrics;
pub use self::packing::{PackedBytes, PackingMetrics};
pub use self::receipts::{
    CallbackAttempt, CallbackOutcome, InvalidReason, ReceiptKind, ReceiptMetrics,
};
pub use self::seals::{SealMetrics, SealRefusal, SealedIn};
pub use self::sends::{SendMetrics, TargetKind, Unsent};
pub use self::skips::{Skip, Skipped};

/// A closed set of label values.
pub trait Label: Copy + Eq + Hash + 'static {
    /// Every value.
    const ALL: &'static [Self];
    /// The text in the metric.
    fn label(self) -> &'static str;
}

/// One counter for each value of a label.
pub struct CounterBy<L: Label>(HashMap<L, Counter>);

impl<L: Label> CounterBy<L> {
    pub(crate) fn new(name: &'static str, label: &'static str) -> Self {
        Self::with(|l| counter!(name, label => l.label()))
    }

    /// The counters that `counter` gives.
    pub(crate) fn with(counter: impl Fn(L) -> Counter) -> Self {
        Self(L::ALL.iter().map(|l| (*l, counter(*l))).collect())
    }

    /// The counter of one value.
    pub fn of(&self, label: L) -> &Counter {
        &self.0[&label]
    }
}

/// Declares a label enum with its texts.
#[macro_export]
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $crate::base::metrics::Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn label(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

labels! {
    /// By which door a connection came.
    Transport {
        /// MQTT over TCP.
        Tcp = "tcp",
        /// MQTT over TLS.
        Tls = "tls",
        /// MQTT over WebSocket.
        WebSocket = "websocket",
        /// Frames of one HTTPS request.
        Https = "https",
    }
}

labels! {
    /// How a handshake ended.
    Handshake {
        /// CONNACK with success.
        Accepted = "accepted",
        /// Wrong device id or secret.
        BadCredentials = "bad_credentials",
        /// Not MQTT, or a broken CONNECT.
        Malformed = "malformed",
        /// It took too long.
        Timeout = "timeout",
        /// TLS, WebSocket or the header of a balancer failed.
        Transport = "transport",
        /// Over a bound of the node: `carillon_refused_connections_total` says which.
        Refused = "refused",
        /// It gave its place to others who waited.
        Evicted = "evicted",
        /// The client had closed before its turn came.
        GaveUp = "gave_up",
    }
}

labels! {
    /// The kind of an uplink frame.
    UpKind {
        /// `Resume`.
        Resume = "resume",
        /// `Positions`.
        Positions = "positions",
        /// `Register`.
        Register = "register",
        /// `Unregister`.
        Unregister = "unregister",
        /// `Bind`.
        Bind = "bind",
        /// `Unbind`.
        Unbind = "unbind",
        /// `Subscribe`.
        Subscribe = "subscribe",
        /// `Unsubscribe`.
        Unsubscribe = "unsubscribe",
        /// `Accept`.
        Accept = "accept",
        /// `Rekey`.
        Rekey = "rekey",
        /// `HeartbeatReport`.
        Heartbeat = "heartbeat",
        /// `Event`.
        Event = "event",
        /// `Repair`.
        Repair = "repair",
        /// `Describe`.
        Describe = "describe",
        /// `Upload`.
        Upload = "upload",
        /// Not a frame, or of no known kind.
        Unknown = "unknown",
    }
}

labels! {
    /// How an uplink frame was answered.
    UpResult {
        /// Done.
        Ok = "ok",
        /// The device's fault.
        Refused = "refused",
        /// Our fault.
        Failed = "failed",
    }
}

labels! {
    /// Where a device that resumed stood, queue by queue.
    ResumeReason {
        /// Its digest was ours: nothing to compare.
        Digest = "digest",
        /// It stated a position that continues.
        Continued = "continued",
        /// It has no position.
        New = "new",
        /// An epoch changed.
        EpochChanged = "epoch_changed",
        /// It is behind the floor.
        Overflow = "overflow",
        /// It proved a loss.
        Ahead = "ahead",
        /// It stated a position above head without proof.
        Forged = "forged",
        /// The stored pointer answered (plain use).
        Stored = "stored",
    }
}

labels! {
    /// What became of what devices report of idle gaps.
    HeartbeatReport {
        /// It was weighed.
        Taken = "taken",
        /// Other devices speak for the network.
        Aside = "aside",
        /// The device has just reported.
        TooFrequent = "too_frequent",
        /// A value was out of its range.
        Invalid = "invalid",
        /// No report: the gateway saw itself how a gap fared.
        Seen = "seen",
    }
}

labels! {
    /// How an interval was advised.
    HeartbeatAdvice {
        /// In an answer to a report.
        Frame = "frame",
        /// As Server Keep Alive.
        KeepAlive = "keep_alive",
    }
}

labels! {
    /// How a send was answered.
    SendResult {
        /// Durable.
        Accepted = "accepted",
        /// The app server's fault.
        Refused = "refused",
        /// Our fault.
        Failed = "failed",
    }
}

/// The edge: connections and what moves on them.
pub struct EdgeMetrics {
    /// Connections whose handshake succeeded, by transport.
    pub connections_opened: CounterBy<Transport>,
    /// The same connections, ended.
    pub connections_closed: CounterBy<Transport>,
    /// Opened minus closed.
    pub connections: Gauge,
    /// Handshakes by their end.
    pub handshakes: CounterBy<Handshake>,
    /// Accepted sockets whose handshake has not ended.
    pub handshakes_in_flight: Gauge,
    /// From accept to CONNACK.
    pub handshake_seconds: Histogram,
    /// Uplink frames by kind and result: counter and latency.
    up_frames: HashMap<(UpKind, UpResult), (Counter, Histogram)>,
    /// Deltas or plain messages sent to devices, first sends and redeliveries.
    pub pushes: Counter,
    /// Of these, sends of what was sent before.
    pub redeliveries: Counter,
    /// Bytes written to devices, MQTT and above.
    pub bytes_out: Counter,
    /// Bytes read from devices.
    pub bytes_in: Counter,
    /// Acknowledged pushes.
    pub acks: Counter,
    /// From the entry's time (its acceptance, one commit before it is durable) to its
    /// acknowledgement, of each acknowledged message; time offline is in it.
    pub durable_to_acked_seconds: Histogram,
    /// Followed queues at resume, by where the device stood.
    pub resumes: CounterBy<ResumeReason>,
    /// Networks of which the advisor knows something.
    pub heartbeat_networks: Gauge,
    /// What became of heartbeat reports.
    pub heartbeat_reports: CounterBy<HeartbeatReport>,
    /// Advised intervals, by way.
    pub heartbeat_advice: CounterBy<HeartbeatAdvice>,
    /// The same intervals.
    pub heartbeat_advised_seconds: Histogram,
}

impl EdgeMetrics {
    /// Notes an answered uplink frame.
    pub fn up_frame(&self, kind: UpKind, result: UpResult, took: Duration) {
        let (count, latency) = &self.up_frames[&(kind, result)];
        count.increment(1);
        latency.record(took);
    }
}

/// Sends and queues.
pub struct QueueMetrics {
    /// Sends by target.
    pub sends: CounterBy<TargetKind>,
    /// Sends by result.
    pub send_results: CounterBy<SendResult>,
    /// From the parsed request to durable.
    pub send_to_durable_seconds: Histogram,
    /// Group commits.
    pub commits: Counter,
    /// Records in them.
    pub commit_records: Counter,
    /// Write and sync of one commit.
    pub commit_seconds: Histogram,
    /// Commits that failed: no more than one, then the node stops.
    pub commit_failures: Counter,
    /// Entries appended.
    pub entries: Counter,
    /// Entries that were skipped on the way to a registration whose pointer has passed them, by reason.
    pub skips: CounterBy<Skip>,
    /// Pointer records flushed.
    pub pointer_flushes: Counter,
    /// Losses that a device proved or the commit mark showed.
    pub losses: Counter,
    /// Days dropped by retention.
    pub days_dropped: Counter,
    /// Entries kept in memory, in bytes.
    pub tail_bytes: Gauge,
    /// The store on disk.
    pub store_bytes: Gauge,
}

/// The process and its runtime, sampled.
pub struct RuntimeMetrics {
    /// Threads that run tasks.
    workers: Gauge,
    /// Tasks that have not ended.
    tasks: Gauge,
    /// Tasks that wait for any worker: more than a few means that the node is overloaded.
    waiting_tasks: Gauge,
    /// CPU, memory, descriptors and threads, under Prometheus's standard names.
    process: metrics_process::Collector,
    runtimes: [Handle; 2],
}

impl RuntimeMetrics {
    /// The gauges of these, described.
    pub fn new(runtimes: [Handle; 2]) -> Self {
        let process = metrics_process::Collector::default();
        process.describe();
        Self {
            workers: gauge!("carillon_runtime_workers"),
            tasks: gauge!("carillon_runtime_tasks"),
            waiting_tasks: gauge!("carillon_runtime_waiting_tasks"),
            process,
            runtimes,
        }
    }

    /// Reads the current values: counts every open file, so it takes a while.
    pub fn sample(&self) {
        let sum = |of: fn(tokio::runtime::RuntimeMetrics) -> usize| {
            self.runtimes.iter().map(|runtime| of(runtime.metrics())).sum::<usize>() as f64
        };
        self.workers.set(sum(|runtime| runtime.num_workers()));
        self.tasks.set(sum(|runtime| runtime.num_alive_tasks()));
        self.waiting_tasks.set(sum(|runtime| runtime.global_queue_depth()));
        self.process.collect();
    }
}

labels! {
    /// How an order to read the configuration again ended.
    Reload {
        /// What could change has changed.
        Done = "done",
        /// Something was wrong: nothing has changed.
        Refused = "refused",
    }
}

/// The node as a whole.
pub struct NodeMetrics {
    /// Orders to read the configuration again, by how they ended.
    pub reloads: CounterBy<Reload>,
}

/// All metrics of the process.
pub struct Metrics {
    /// The edge.
    pub edge: EdgeMetrics,
    /// Sends and queues.
    pub queue: QueueMetrics,
    /// What becomes of sends.
    pub sends: SendMetrics,
    /// Collections.
    pub collections: CollectionMetrics,
    /// Long-term storage.
    pub longterm: LongTermMetrics,
    /// The HTTPS API.
    pub api: ApiMetrics,
    /// Caches and lanes.
    pub engine: EngineMetrics,
    /// The node.
    pub node: NodeMetrics,
    /// Receipts, callbacks, feedback.
    pub receipts: ReceiptMetrics,
    /// Sealed payloads.
    pub seals: SealMetrics,
    /// Packed frames.
    pub packing: PackingMetrics,
    /// Scheduled and held messages.
    pub timing: timing::TimingMetrics,
}

impl Metrics {
    /// The metrics on the recorder that is installed now; without one they go nowhere.
    pub fn new() -> Self {
        gauge!(
            "carillon_build_info",
            "version" => env!("CARGO_PKG_VERSION"),
            "profile" => if cfg!(debug_assertions) { "debug" } else { "release" },
        )
        .set(1.0);
        let node = NodeMetrics { reloads: CounterBy::new("carillon_reloads_total", "result") };
        let (engine, receipts) = (EngineMetrics::new(), ReceiptMetrics::new());
        let (sends, timing) = (SendMetrics::new(), timing::TimingMetrics::new());
        let (edge, queue, api, seals) = (edge(), queue(), ApiMetrics::new(), SealMetrics::new());
        let packing = PackingMetrics::new();
        let (collections, longterm) = (CollectionMetrics::new(), LongTermMetrics::new());
        Self {
            edge,
            queue,
            sends,
            collections,
            longterm,
            api,
            engine,
            node,
            receipts,
            seals,
            packing,
            timing,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn edge() -> EdgeMetrics {
    let frame = |kind: UpKind, result: UpResult| {
        let labels = [("kind", kind.label()), ("result", result.label())];
        let count = counter!("carillon_up_frames_total", &labels);
        let latency = histogram!("carillon_up_frame_seconds", "kind" => kind.label());
        ((kind, result), (count, latency))
    };
    let results =
        |kind: &UpKind| UpResult::ALL.iter().map(|r| frame(*kind, *r)).collect::<Vec<_>>();
    EdgeMetrics {
        connections_opened: CounterBy::new("carillon_connections_opened_total", "transport"),
        connections_closed: CounterBy::new("carillon_connections_closed_total", "transport"),
        connections: gauge!("carillon_connections"),
        handshakes: CounterBy::new("carillon_handshakes_total", "result"),
        handshakes_in_flight: gauge!("carillon_handshakes_in_flight"),
        handshake_seconds: histogram!("carillon_handshake_seconds"),
        up_frames: UpKind::ALL.iter().flat_map(results).collect(),
        pushes: counter!("carillon_pushes_total"),
        redeliveries: counter!("carillon_redeliveries_total"),
        bytes_out: counter!("carillon_device_sent_bytes_total"),
        bytes_in: counter!("carillon_device_received_bytes_total"),
        acks: counter!("carillon_acks_total"),
        durable_to_acked_seconds: histogram!("carillon_durable_to_acked_seconds"),
        resumes: CounterBy::new("carillon_resumes_total", "reason"),
        heartbeat_networks: gauge!("carillon_heartbeat_networks"),
        heartbeat_reports: CounterBy::new("carillon_heartbeat_reports_total", "result"),
        heartbeat_advice: CounterBy::new("carillon_heartbeat_advice_total", "way"),
        heartbeat_advised_seconds: histogram!(ADVISED),
    }
}

fn queue() -> QueueMetrics {
    QueueMetrics {
        sends: CounterBy::new("carillon_sends_total", "target"),
        send_results: CounterBy::new("carillon_send_results_total", "result"),
        send_to_durable_seconds: histogram!("carillon_send_to_durable_seconds"),
        commits: counter!("carillon_commits_total"),
        commit_records: counter!("carillon_commit_records_total"),
        commit_seconds: histogram!("carillon_commit_seconds"),
        commit_failures: counter!("carillon_commit_failures_total"),
        entries: counter!("carillon_entries_total"),
        skips: skips::counters(),
        pointer_flushes: counter!("carillon_pointer_flushes_total"),
        losses: counter!("carillon_losses_total"),
        days_dropped: counter!("carillon_days_dropped_total"),
        tail_bytes: gauge!("carillon_tail_bytes"),
        store_bytes: gauge!("carillon_store_bytes"),
    }
}

/// Upper bounds of the histograms' buckets, in seconds.
const BUCKETS: [f64; 16] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5,
    1.0, 5.0, 30.0,
];

/// Intervals of heartbeats have buckets of their own.
const ADVISED: &str = "carillon_heartbeat_advised_seconds";
const ADVISED_BUCKETS: [f64; 10] =
    [60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1_200.0];

/// Installs the process's recorder; the handle renders the text that Prometheus scrapes.
///
/// # Errors
/// If another recorder is installed already.
pub fn install() -> Result<PrometheusHandle, metrics_exporter_prometheus::BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(ADVISED.into()), &ADVISED_BUCKETS)?
        .install_recorder()
}
