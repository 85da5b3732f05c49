//! The composition root.

pub mod core;
