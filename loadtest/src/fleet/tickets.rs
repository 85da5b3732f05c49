//! TLS of the devices: who is trusted, and one store of session tickets for all of them.
//!
//! To rustls all devices are one client of one server name, so any of them may use any ticket, each ticket once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue};
use rustls::client::{Tls12Resumption, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::{ClientConfig, NamedGroup, RootCertStore};

use crate::order::Tls;

/// What all devices of a worker share.
pub fn config(tls: &Tls, devices: usize) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let path = tls.ca.display();
    let certificates = CertificateDer::pem_file_iter(&tls.ca);
    for certificate in certificates.with_context(|| format!("cannot read the CA {path}"))? {
        roots.add(certificate.with_context(|| format!("{path} is not PEM"))?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder?.with_root_certificates(roots).with_no_client_auth();
    config.resumption = match tls.resume {
        false => Resumption::disabled(),
        true => {
            let store = Store { inner: Mutex::default(), tickets_max: devices.max(1) * 2 };
            Resumption::store(Arc::new(store)).tls12_resumption(Tls12Resumption::Disabled)
        }
    };
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Store {
    inner: Mutex<Inner>,
    tickets_max: usize,
}

#[derive(Debug, Default)]
struct Inner {
    tickets: VecDeque<Tls13ClientSessionValue>,
    group: Option<NamedGroup>,
}

impl Store {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Store {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.inner().group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.inner().group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut inner = self.inner();
        if inner.tickets.len() == self.tickets_max {
            inner.tickets.pop_front();
        }
        inner.tickets.push_back(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.inner().tickets.pop_back()
    }
}
