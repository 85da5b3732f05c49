//! Connects in floods: from one address, half open, with wrong secrets, over a configured
//! rate, over the open files, cut again and again, and for the same device. Each has its
//! bound and its label, and the devices that behave are served all the while.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod flood;
mod ledger;
mod support;
mod wirelab;

#[path = "storm/addresses.rs"]
mod addresses;
#[path = "storm/all.rs"]
mod all;
#[path = "storm/bounds.rs"]
mod bounds;
#[path = "storm/cuts.rs"]
mod cuts;
#[path = "storm/files.rs"]
mod files;
#[path = "storm/rate.rs"]
mod rate;
#[path = "storm/sessions.rs"]
mod sessions;
#[path = "storm/silent.rs"]
mod silent;
#[path = "storm/tls.rs"]
mod tls;
