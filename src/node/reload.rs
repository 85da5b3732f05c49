//! Reading the configuration again: everything is read and checked first, then put in place.
//!
//! What a running node cannot change is refused by its name, with everything else that the
//! file says: half of a change would be none that anybody wrote down.

use std::sync::Arc;

use anyhow::{Context, anyhow, bail};

use super::{
    Outside,
    doors::{self, Addresses, Shown},
};
use crate::{
    base::{
        clock::Clock,
        metrics::{Metrics, Reload},
    },
    config::Config,
    edge::Edge,
    service::Service,
};

/// What a reload changes, and what it goes by.
pub(super) struct Reloads {
    pub(super) outside: Outside,
    /// What the node goes by now.
    pub(super) config: Config,
    pub(super) shown: Shown,
    pub(super) addresses: Addresses,
    pub(super) edge: Arc<Edge>,
    pub(super) service: Arc<Service>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
}

impl Reloads {
    /// Reads everything again, and says which keys changed, or in one line why none did.
    pub(super) fn reload(&mut self) -> Result<Vec<String>, String> {
        let reloaded = self.try_reload();
        let result = if reloaded.is_ok() { Reload::Done } else { Reload::Refused };
        self.metrics.node.reloads.of(result).increment(1);
        match &reloaded {
            Ok(changed) => tracing::info!(?changed, "the configuration was read again"),
            Err(error) => {
                tracing::warn!("the configuration stays as it is: {error:#}");
            }
        }
        reloaded.map_err(|error| format!("{error:#}"))
    }

    fn try_reload(&mut self) -> anyhow::Result<Vec<String>> {
        let config = (self.outside.read)()?;
        let mut changed = changed_keys(&self.config, &config)?;
        self.refuse_fixed(&changed)?;
        let place = |key| (self.outside.place)(key);
        let identity = doors::identity(&config, &self.addresses, self.clock.unix_ms())
            .map_err(anyhow::Error::from)
            .and_then(|identity| self.shown.prepare(&config, identity))
            .with_context(|| place("listen.certificate"));
        let next = identity?;
        let log = (self.outside.log)(&config).with_context(|| place("log.filter"))?;

        // Nothing below can fail.
        if self.shown.replace(next) && !changed.iter().any(|key| key == CERTIFICATE) {
            changed.push(CERTIFICATE.to_owned());
        }
        self.edge.reconfigure(config.edge.clone());
        self.service.reconfigure(config.limits.clone());
        log();
        self.config = config;
        Ok(changed)
    }

    fn refuse_fixed(&self, changed: &[String]) -> anyhow::Result<()> {
        let fixed = changed.iter().filter(|key| !LIVE.contains(&key.as_str()));
        let fixed: Vec<String> = fixed
            .map(|key| format!("{}: {key} needs a restart", (self.outside.place)(key)))
            .collect();
        if !fixed.is_empty() {
            bail!("{}", fixed.join("; "));
        }
        Ok(())
    }
}

/// Every key whose value is another one, with its section.
fn changed_keys(old: &Config, new: &Config) -> anyhow::Result<Vec<String>> {
    let (old, new) = (toml::Table::try_from(old)?, toml::Table::try_from(new)?);
    let mut changed = Vec::new();
    for (section, keys) in &new {
        let keys = keys.as_table().ok_or_else(|| anyhow!("{section} is no section"))?;
        let was = old.get(section);
        let differs = |key: &str, value| was.and_then(|section| section.get(key)) != Some(value);
        let names = keys.iter().filter(|(key, value)| differs(key, *value));
        changed.extend(names.map(|(key, _)| format!("{section}.{key}")));
    }
    Ok(changed)
}

const CERTIFICATE: &str = "listen.certificate";

/// What a running node can change. A key that is not here needs a restart.
const LIVE: &[&str] = &[
    CERTIFICATE,
    "listen.private_key",
    "edge.connections_max",
    "edge.handshake_timeout_ms",
    "edge.connect_bytes_max",
    "edge.packet_bytes_max",
    "edge.keep_alive_min_s",
    "edge.keep_alive_max_s",
    "edge.window",
    "edge.window_per_registration",
    "edge.frame_entries_max",
    "edge.pack_bytes_min",
    "edge.session_expiry_max_s",
    "edge.write_timeout_ms",
    "edge.gate",
    "api.connections_per_address_max",
    "api.body_bytes_max",
    "api.head_bytes_max",
    "api.head_timeout_ms",
    "api.request_timeout_ms",
    "api.devices_per_address_per_minute",
    "api.devices_per_app_per_minute",
    "limits.registrations_per_device",
    "limits.aliases_per_registration",
    "limits.registrations_per_alias",
    "limits.topics_per_registration",
    "limits.targets_per_send",
    "limits.payload_bytes_max",
    "limits.ttl_default_s",
    "limits.scheduled_per_app",
    "limits.registration_expires_days",
    "limits.feedback_days",
    "limits.edits_per_s",
    "limits.edits_burst",
    "limits.allowance",
    "limits.apps",
    "drain.deadline_s",
    "drain.spread_s",
    "drain.takeover_spread_ms",
    "drain.pace",
    "drain.reconnect_s",
    "drain.server",
    "log.filter",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_named_and_live_keys_exist() {
        let mut other = Config::default();
        assert!(changed_keys(&Config::default(), &other).unwrap().is_empty());
        other.edge.window = 7;
        other.listen.mqtt = crate::config::Bind::Off;
        let changed = changed_keys(&Config::default(), &other).unwrap();
        assert_eq!(changed, ["edge.window", "listen.mqtt"]);
        let table = toml::Table::try_from(Config::default()).unwrap();
        for key in table["limits"].as_table().unwrap().keys() {
            assert!(LIVE.contains(&format!("limits.{key}").as_str()), "{key}");
        }
        for key in LIVE {
            let (section, name) = key.split_once('.').unwrap();
            assert!(table[section].get(name).is_some(), "{key}");
        }
    }
}
