//! Named places where a crash test kills the process.
//!
//! `crash_point!("writer::after_sync")` does nothing in a normal build. With the
//! `sim` feature and `FAILPOINTS="writer::after_sync=1%return"` it aborts the
//! process there, as a power cut would.

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
];

#[cfg(feature = "sim")]
#[doc(hidden)]
pub fn reached(name: &'static str) {
    static ARMED: std::sync::Once = std::sync::Once::new();
    // Reads FAILPOINTS; forgotten, because dropping it would disarm them.
    ARMED.call_once(|| std::mem::forget(fail::FailScenario::setup()));
    fail::fail_point!(name, |_| {
        eprintln!("crash point {name}");
        std::process::abort()
    });
}

#[cfg(not(feature = "sim"))]
#[doc(hidden)]
#[inline(always)]
pub fn reached(_name: &'static str) {}
