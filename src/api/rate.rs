//! How many device accounts an address, and an app, may create in a minute.
//!
//! Fixed windows in maps of bounded size. When the map of addresses is full, new
//! addresses wait for the next minute: memory is bounded whatever strangers do.

use std::{hash::Hash, net::IpAddr, sync::Mutex, sync::PoisonError, time::Duration};

use dashmap::DashMap;
use tokio::time::Instant;

use crate::{
    base::http::{Code, Problem},
    config,
};

/// The two limits of device creation.
pub(super) struct DeviceRates {
    addresses: PerMinute<IpAddr>,
    apps: PerMinute<String>,
}

impl DeviceRates {
    pub(super) fn new(config: &config::Api) -> Self {
        Self {
            addresses: PerMinute::new(config.devices_per_address_per_minute),
            apps: PerMinute::new(config.devices_per_app_per_minute),
        }
    }

    /// Counts an attempt from an address, right or wrong: keys cannot be guessed quickly.
    pub(super) fn attempt(&self, address: IpAddr) -> Result<(), Problem> {
        let taken = self.addresses.take(network(address));
        taken.map_err(|after| limited("this address creates too many devices", after))
    }

    /// Whether an app may create one more.
    pub(super) fn check_app(&self, app: &str) -> Result<(), Problem> {
        let checked = self.apps.check(&app.to_owned());
        checked.map_err(|after| limited("this app creates too many devices", after))
    }

    /// Counts a created device.
    pub(super) fn count_app(&self, app: &str) {
        // Over the limit by what was in flight at most: the next check refuses.
        let _ = self.apps.take(app.to_owned());
    }
}

fn limited(detail: &str, after: Duration) -> Problem {
    let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
    Problem { retry_after_s: Some(seconds.max(1)), ..Problem::new(Code::RateLimited, detail) }
}

/// One subscriber has a whole /64 of IPv6 addresses.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

/// Counts by key, all in the same minute.
struct PerMinute<K: Eq + Hash> {
    limit: u32,
    counts: DashMap<K, u32>,
    minute: Mutex<Instant>,
}

impl<K: Eq + Hash> PerMinute<K> {
    fn new(limit: u32) -> Self {
        Self { limit, counts: DashMap::new(), minute: Mutex::new(Instant::now()) }
    }

    /// Counts one, or says how long to wait.
    fn take(&self, key: K) -> Result<(), Duration> {
        let left = self.turn();
        if self.counts.len() >= KEYS_MAX && !self.counts.contains_key(&key) {
            return Err(left);
        }
        let mut count = self.counts.entry(key).or_insert(0);
        if *count >= self.limit {
            return Err(left);
        }
        *count += 1;
        Ok(())
    }

    /// Whether one more would be counted.
    fn check(&self, key: &K) -> Result<(), Duration> {
        let left = self.turn();
        match self.counts.get(key) {
            Some(count) if *count >= self.limit => Err(left),
            None if self.limit == 0 => Err(left),
            Some(_) | None => Ok(()),
        }
    }

    /// Begins a new minute if the old one is over; what is left of the current one.
    fn turn(&self) -> Duration {
        let mut began = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        if began.elapsed() >= MINUTE {
            self.counts.clear();
            *began = Instant::now();
        }
        MINUTE.saturating_sub(began.elapsed())
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const KEYS_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_minute_refuses_and_the_next_one_accepts() {
        let config = config::Api { devices_per_address_per_minute: 2, ..config::Api::default() };
        let rates = DeviceRates::new(&config);
        let (one, same, other): (IpAddr, IpAddr, IpAddr) = (
            "2001:db8::1".parse().unwrap(),
            "2001:db8::2".parse().unwrap(),
            "192.0.2.1".parse().unwrap(),
        );
        assert_eq!(rates.attempt(one), Ok(()));
        assert_eq!(rates.attempt(same), Ok(()));
        tokio::time::advance(Duration::from_millis(20_500)).await;
        let refused = rates.attempt(one).unwrap_err();
        assert_eq!((refused.code, refused.retry_after_s), (Code::RateLimited, Some(40)));
        assert_eq!(rates.attempt(other), Ok(()));
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(rates.attempt(one), Ok(()));
    }

    #[tokio::test]
    async fn an_app_is_limited_by_what_it_created() {
        let config = config::Api { devices_per_app_per_minute: 1, ..config::Api::default() };
        let rates = DeviceRates::new(&config);
        assert_eq!(rates.check_app("demo"), Ok(()));
        assert_eq!(rates.check_app("demo"), Ok(()));
        rates.count_app("demo");
        assert!(rates.check_app("demo").is_err());
        assert_eq!(rates.check_app("other"), Ok(()));
    }
}
