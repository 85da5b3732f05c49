//! Texts and documents made from seeds: one corpus to make the dictionary from, another one to measure with.
#![allow(dead_code, reason = "a program uses some of it")]

pub mod dice;
pub mod document;
pub mod missed;
pub mod prose;
pub mod table;
pub mod training;
