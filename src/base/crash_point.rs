//! Named places where a crash test kills the process, or where a test makes something fail.
//!
//! `crash_point!("writer::after_sync")` does nothing in a normal build. With the
//! `sim` feature and `FAILPOINTS="writer::after_sync=1%return"` it aborts the
//! process there, as a power cut would. `fails("seal::own")` is false but for tests.

/// Aborts here if the crash test asks for it.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        $crate::base::crash_point::reached($name)
    };
}

/// Every crash point, so that a test can prove that it hit them all.
pub const ALL: &[&str] = &[
    "writer::before_commit",
    "writer::before_sync",
    "writer::after_sync",
    "shard::before_publish",
    "send::after_record",
    "send::before_done",
    "schedule::after_accept",
    "schedule::before_due",
    "schedule::after_due",
    "recall::after_record",
    "pointers::before_flush",
    "receipts::before_write",
    "callbacks::before_pass",
    "mark::before_write",
    "mark::before_sync",
    "retention::before_drop",
    "longterm::before_fold",
    "longterm::after_fold",
    "longterm::after_removal",
];

/// Crash points of a change of keys: not every test changes some.
pub const OF_KEYS: &[&str] =
    &["keys::before_rekey", "keys::after_rekey", "keys::before_change", "keys::after_change"];

/// Crash points of uploads: not every test uploads.
pub const OF_UPLOADS: &[&str] = &["uploads::before_answer"];

/// Where sealing fails if a test wants it to.
pub const FAULTS: &[&str] = &["seal::own", "seal::shared", "seal::wrap"];

#[cfg(feature = "sim")]
fn arm() {
    static ARMED: std::sync::Once = std::sync::Once::new();
    // Reads FAILPOINTS; forgotten, because dropping it would disarm them.
    ARMED.call_once(|| std::mem::forget(fail::FailScenario::setup()));
}

/// Whether a test wants this to fail here.
#[cfg(feature = "sim")]
pub fn fails(name: &'static str) -> bool {
    arm();
    fail::fail_point!(name, |_| true);
    false
}

/// Whether a test wants this to fail here.
#[cfg(not(feature = "sim"))]
#[inline(always)]
pub fn fails(_name: &'static str) -> bool {
    false
}

#[cfg(feature = "sim")]
#[doc(hidden)]
pub fn reached(name: &'static str) {
    arm();
    fail::fail_point!(name, |_| {
        eprintln!("crash point {name}");
        std::process::abort()
    });
}

#[cfg(not(feature = "sim"))]
#[doc(hidden)]
#[inline(always)]
pub fn reached(_name: &'static str) {}
