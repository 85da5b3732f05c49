//! HTTPS for app servers: requests become business calls, their results JSON. Devices without
//! a connection bring their frames here too.
//!
//! [`ROUTES`] is the one list of what there is; the router and the check of
//! `openapi.json` are made from it. A file a resource; who asks is in `auth`, what
//! refusals look like in `error`. Knows no MQTT, and no queue but through the service.

mod allowance;
mod audience;
mod auth;
mod batch;
mod busy;
mod collections;
mod devices;
mod documents;
pub mod error;
mod feedback;
pub mod frames;
mod messages;
mod once;
mod page;
mod rate;
mod registrations;
mod scheduled;
mod topics;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{MethodRouter, delete, get, post, put},
};

use crate::{
    base::http::{Ready, Token, envelope::Envelope, serve::Bounds},
    config,
    service::Service,
};

/// Who may ask at this door.
#[derive(Clone)]
pub enum Authority {
    /// App servers, each for its own app: the public HTTPS door.
    AppSecrets,
    /// The operator, for any app: the same calls on the admin listener, which
    /// has its own health routes.
    Operator(Token),
}

/// One entry of the route table.
pub struct Route {
    /// Its operations as `openapi.json` has them: lower-case method, path.
    pub operations: &'static [(&'static str, &'static str)],
    /// The path as the router wants it.
    path: &'static str,
    methods: fn() -> MethodRouter<Shared>,
    door: Door,
}

/// Where a route is mounted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Both,
    Public,
}

/// Everything that the API answers.
pub const ROUTES: &[Route] = &[
    Route {
        operations: &[("post", "/v1/devices")],
        path: "/v1/devices",
        methods: || post(devices::create).layer(DefaultBodyLimit::max(devices::BODY_BYTES_MAX)),
        door: Door::Both,
    },
    Route {
        operations: &[("post", "/v1/frames")],
        path: "/v1/frames",
        methods: || post(frames::exchange),
        door: Door::Public,
    },
    Route {
        operations: &[("post", "/v1/apps/{app}/messages")],
        path: "/v1/apps/{app}/messages",
        methods: || post(messages::send),
        door: Door::Both,
    },
    Route {
        operations: &[("post", "/v1/apps/{app}/messages:batch")],
        path: "/v1/apps/{app}/messages:batch",
        methods: || post(batch::send),
        door: Door::Both,
    },
    Route {
        operations: &[
            ("get", "/v1/apps/{app}/messages/{id}"),
            ("delete", "/v1/apps/{app}/messages/{id}"),
        ],
        path: "/v1/apps/{app}/messages/{id}",
        methods: || get(messages::show).merge(delete(messages::take_back)),
        door: Door::Both,
    },
    Route {
        operations: &[("get", "/v1/apps/{app}/messages/{id}/trace")],
        path: "/v1/apps/{app}/messages/{id}/trace",
        methods: || get(messages::trace),
        door: Door::Both,
    },
    Route {
        operations: &[("get", "/v1/apps/{app}/scheduled")],
        path: "/v1/apps/{app}/scheduled",
        methods: || get(scheduled::list),
        door: Door::Both,
    },
    Route {
        operations: &[
            ("get", "/v1/apps/{app}/registrations/{regid}"),
            ("delete", "/v1/apps/{app}/registrations/{regid}"),
        ],
        path: "/v1/apps/{app}/registrations/{regid}",
        methods: || get(registrations::show).merge(delete(registrations::unregister)),
        door: Door::Both,
    },
    Route {
        operations: &[("put", "/v1/apps/{app}/registrations/{regid}/attributes")],
        path: "/v1/apps/{app}/registrations/{regid}/attributes",
        methods: || put(registrations::describe),
        door: Door::Both,
    },
    Route {
        operations: &[
            ("put", "/v1/apps/{app}/registrations/{regid}/accept"),
            ("delete", "/v1/apps/{app}/registrations/{regid}/accept"),
        ],
        path: "/v1/apps/{app}/registrations/{regid}/accept",
        methods: || put(registrations::accept).merge(delete(registrations::accept_always)),
        door: Door::Both,
    },
    Route {
        operations: &[
            ("put", "/v1/apps/{app}/registrations/{regid}/aliases/{alias}"),
            ("delete", "/v1/apps/{app}/registrations/{regid}/aliases/{alias}"),
        ],
        path: "/v1/apps/{app}/registrations/{regid}/aliases/{alias}",
        methods: || put(registrations::bind).merge(delete(registrations::unbind)),
        door: Door::Both,
    },
    Route {
        operations: &[
            ("put", "/v1/apps/{app}/registrations/{regid}/topics/{topic}"),
            ("delete", "/v1/apps/{app}/registrations/{regid}/topics/{topic}"),
        ],
        path: "/v1/apps/{app}/registrations/{regid}/topics/{topic}",
        methods: || put(registrations::subscribe).merge(delete(registrations::unsubscribe)),
        door: Door::Both,
    },
    Route {
        operations: &[
            ("get", "/v1/apps/{app}/topics/{topic}"),
            ("post", "/v1/apps/{app}/topics/{topic}:subscribe"),
            ("post", "/v1/apps/{app}/topics/{topic}:unsubscribe"),
        ],
        path: "/v1/apps/{app}/topics/{topic}",
        methods: || get(topics::show).merge(post(topics::change)),
        door: Door::Both,
    },
    Route {
        operations: &[("get", "/v1/apps/{app}/topics/{topic}/members")],
        path: "/v1/apps/{app}/topics/{topic}/members",
        methods: || get(topics::members),
        door: Door::Both,
    },
    Route {
        operations: &[
            ("put", "/v1/apps/{app}/collections/{collection}"),
            ("get", "/v1/apps/{app}/collections/{collection}"),
            ("delete", "/v1/apps/{app}/collections/{collection}"),
        ],
        path: "/v1/apps/{app}/collections/{collection}",
        methods: || {
            put(collections::declare).merge(get(collections::show)).merge(delete(collections::end))
        },
        door: Door::Both,
    },
    Route {
        operations: &[
            ("post", "/v1/apps/{app}/aliases/{alias}/changes"),
            ("get", "/v1/apps/{app}/aliases/{alias}/changes"),
        ],
        path: "/v1/apps/{app}/aliases/{alias}/changes",
        methods: || post(collections::change).merge(get(collections::changes)),
        door: Door::Both,
    },
    Route {
        operations: &[("get", "/v1/apps/{app}/aliases/{alias}/snapshot")],
        path: "/v1/apps/{app}/aliases/{alias}/snapshot",
        methods: || get(collections::snapshot),
        door: Door::Both,
    },
    Route {
        operations: &[("get", "/v1/apps/{app}/feedback/invalid")],
        path: "/v1/apps/{app}/feedback/invalid",
        methods: || get(feedback::invalid),
        door: Door::Both,
    },
    Route {
        operations: &[("get", "/openapi.json")],
        path: "/openapi.json",
        methods: || get(documents::openapi),
        door: Door::Both,
    },
    Route {
        operations: &[("get", "/healthz")],
        path: "/healthz",
        methods: || get(documents::healthz),
        door: Door::Public,
    },
    Route {
        operations: &[("get", "/readyz")],
        path: "/readyz",
        methods: || get(documents::readyz),
        door: Door::Public,
    },
];

/// What the handlers share.
struct Api {
    service: Arc<Service>,
    authority: Authority,
    ready: Ready,
    desk: frames::Desk,
    device_rates: rate::DeviceRates,
    busy: busy::Busy,
}

type Shared = Arc<Api>;

/// The calls of app servers, for one door.
pub fn router(
    service: Arc<Service>,
    config: &config::Api,
    authority: Authority,
    ready: Ready,
    desk: frames::Desk,
) -> Router {
    let envelope = Envelope {
        request_timeout: Duration::from_millis(config.request_timeout_ms),
        body_bytes_max: config.body_bytes_max,
        metrics: Some(service.metrics().clone()),
    };
    let is_public = matches!(authority, Authority::AppSecrets);
    let shared = Arc::new(Api {
        busy: busy::Busy::new(config, service.metrics().clone()),
        device_rates: rate::DeviceRates::new(config),
        service,
        authority,
        ready,
        desk,
    });
    let limit = DefaultBodyLimit::max(config.body_bytes_max);
    envelope.around(mounted(is_public).layer(limit).with_state(shared))
}

fn mounted(is_public: bool) -> Router<Shared> {
    ROUTES
        .iter()
        .filter(|route| is_public || route.door == Door::Both)
        .fold(Router::new(), |router, route| router.route(route.path, (route.methods)()))
}

/// What one connection may cost.
pub fn bounds(config: &config::Api) -> Bounds {
    Bounds {
        connections_max: config.connections_max,
        connections_per_address_max: config.connections_per_address_max,
        head_bytes_max: config.head_bytes_max,
        head_timeout: Duration::from_millis(config.head_timeout_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_route_table_fits_together_at_both_doors() {
        // The router panics on paths that collide.
        assert!(mounted(true).has_routes());
        // The admin door has these already.
        let own =
            Router::new().route("/healthz", get(|| async {})).route("/readyz", get(|| async {}));
        assert!(mounted(false).merge(own).has_routes());
    }

    #[test]
    fn paths_and_documented_paths_have_the_same_shape() {
        for route in ROUTES {
            for (method, documented) in route.operations {
                let segments = |path: &str| path.split('/').count();
                assert_eq!(segments(documented), segments(route.path), "{method} {documented}");
            }
        }
    }
}
