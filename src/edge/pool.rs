//! Buffers that a worker's connections share, because most of them are idle.

use std::{cell::RefCell, collections::VecDeque};

use bytes::BytesMut;

use super::session::Output;

thread_local! {
    static OUTPUTS: RefCell<VecDeque<Box<Output>>> = const { RefCell::new(VecDeque::new()) };
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// An empty output.
pub fn output() -> Box<Output> {
    OUTPUTS.with_borrow_mut(VecDeque::pop_back).unwrap_or_default()
}

/// Gives an output back for the next connection.
pub fn give_back(mut output: Box<Output>) {
    output.clear();
    if output.bytes.capacity() > KEPT_BYTES {
        output.bytes = BytesMut::new();
    }
    OUTPUTS.with_borrow_mut(|outputs| {
        if outputs.len() < KEPT {
            outputs.push_back(output);
        }
    });
}

/// Lends the worker's read buffer.
pub fn with_read_buffer<R>(read: impl FnOnce(&mut [u8]) -> R) -> R {
    READ.with_borrow_mut(|buffer| read(buffer))
}

/// Read at once from a socket.
const READ_BYTES: usize = 16 << 10;
/// Outputs that a worker keeps.
const KEPT: usize = 16;
/// The largest buffer that is kept.
const KEPT_BYTES: usize = 64 << 10;
