//! Answers of the HTTPS API.

use std::time::Duration;

use metrics::{Counter, Histogram, counter, histogram};

/// The HTTPS API.
pub struct ApiMetrics {
    /// Answers by status class: index 2 is 2xx.
    responses: [Counter; 6],
    /// Calls that were refused because `api.calls_max` were in hand.
    pub overloaded: Counter,
    /// From the head of the request to the end of the answer.
    pub request_seconds: Histogram,
}

impl ApiMetrics {
    pub(super) fn new() -> Self {
        let class = |i: usize| counter!("carillon_api_responses_total", "class" => CLASSES[i]);
        Self {
            responses: std::array::from_fn(class),
            overloaded: counter!("carillon_api_overloaded_total"),
            request_seconds: histogram!("carillon_api_request_seconds"),
        }
    }

    /// Notes an answer.
    pub fn response(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100).min(5);
        self.responses[class].increment(1);
        self.request_seconds.record(took);
    }
}

const CLASSES: [&str; 6] = ["0xx", "1xx", "2xx", "3xx", "4xx", "5xx"];
