//! Thrift's compact protocol over a slice, with every limit set.
//!
//! The runtime's own limits do not know how many bytes are left, and generated code reserves a list by the size that
//! it claims. This wrapper adds the missing check: nothing may claim more items or bytes than there are bytes left.

use std::cell::Cell;
use std::io::{self, Read};

use thrift::protocol::{
    TCompactInputProtocol, TFieldIdentifier, TInputProtocol, TListIdentifier, TMapIdentifier,
    TMessageIdentifier, TSerializable, TSetIdentifier, TStructIdentifier,
};
use thrift::{ProtocolError, ProtocolErrorKind, Result, TConfiguration};

use crate::limits::{CONTAINER_ITEMS_MAX, DEPTH_MAX, FRAME_BYTES_MAX, STRING_BYTES_MAX};

/// Reads one struct from the start of `bytes`; the second value is how many bytes are left behind it.
pub(super) fn read<T: TSerializable>(bytes: &[u8]) -> Result<(T, usize)> {
    let left = Cell::new(bytes);
    let mut guard =
        Guard { inner: TCompactInputProtocol::with_config(Source(&left), limits()?), left: &left };
    let value = T::read_from_in_protocol(&mut guard)?;
    Ok((value, left.get().len()))
}

fn limits() -> Result<TConfiguration> {
    TConfiguration::builder()
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX))
        .max_recursion_depth(Some(DEPTH_MAX))
        .max_container_size(Some(CONTAINER_ITEMS_MAX))
        .max_string_size(Some(STRING_BYTES_MAX))
        .build()
}

/// The bytes that are left, shared with [`Guard`].
struct Source<'a>(&'a Cell<&'a [u8]>);

impl Read for Source<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut left = self.0.get();
        let count = left.read(buf)?;
        self.0.set(left);
        Ok(count)
    }
}

struct Guard<'a> {
    inner: TCompactInputProtocol<Source<'a>>,
    left: &'a Cell<&'a [u8]>,
}

impl<'a> Guard<'a> {
    /// Every item of a list, set or map takes at least a byte.
    fn check_items(&self, items: i32) -> Result<()> {
        match usize::try_from(items) {
            Ok(items) if items <= self.left.get().len() => Ok(()),
            _ => Err(refused(
                ProtocolErrorKind::SizeLimit,
                "a container claims more items than there are bytes",
            )),
        }
    }

    /// A length-prefixed field as a slice of the frame.
    fn binary(&mut self) -> Result<&'a [u8]> {
        let length = self.length()?;
        let (bytes, left) = match self.left.get().split_at_checked(length) {
            Some(parts) if length <= STRING_BYTES_MAX => parts,
            _ => {
                return Err(refused(
                    ProtocolErrorKind::SizeLimit,
                    "a string claims more bytes than it may or has",
                ));
            }
        };
        self.left.set(left);
        Ok(bytes)
    }

    fn length(&mut self) -> Result<usize> {
        let mut length = 0u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.inner.read_byte()?;
            length |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return usize::try_from(length)
                    .map_err(|_| refused(ProtocolErrorKind::SizeLimit, "length"));
            }
        }
        Err(refused(ProtocolErrorKind::InvalidData, "a length of more than five bytes"))
    }
}

impl TInputProtocol for Guard<'_> {
    fn read_message_begin(&mut self) -> Result<TMessageIdentifier> {
        Err(refused(ProtocolErrorKind::NotImplemented, "a frame is a struct, not a call"))
    }

    fn read_message_end(&mut self) -> Result<()> {
        Err(refused(ProtocolErrorKind::NotImplemented, "a frame is a struct, not a call"))
    }

    fn read_bytes(&mut self) -> Result<Vec<u8>> {
        self.binary().map(<[u8]>::to_vec)
    }

    fn read_string(&mut self) -> Result<String> {
        match std::str::from_utf8(self.binary()?) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(refused(ProtocolErrorKind::InvalidData, "a string is not UTF-8")),
        }
    }

    fn skip_binary(&mut self) -> Result<()> {
        self.binary().map(|_| ())
    }

    fn read_list_begin(&mut self) -> Result<TListIdentifier> {
        let list = self.inner.read_list_begin()?;
        self.check_items(list.size)?;
        Ok(list)
    }

    fn read_set_begin(&mut self) -> Result<TSetIdentifier> {
        let set = self.inner.read_set_begin()?;
        self.check_items(set.size)?;
        Ok(set)
    }

    fn read_map_begin(&mut self) -> Result<TMapIdentifier> {
        let map = self.inner.read_map_begin()?;
        self.check_items(map.size)?;
        Ok(map)
    }

    fn read_struct_begin(&mut self) -> Result<Option<TStructIdentifier>> {
        self.inner.read_struct_begin()
    }

    fn read_struct_end(&mut self) -> Result<()> {
        self.inner.read_struct_end()
    }

    fn read_field_begin(&mut self) -> Result<TFieldIdentifier> {
        self.inner.read_field_begin()
    }

    fn read_field_end(&mut self) -> Result<()> {
        self.inner.read_field_end()
    }

    fn read_bool(&mut self) -> Result<bool> {
        self.inner.read_bool()
    }

    fn read_i8(&mut self) -> Result<i8> {
        self.inner.read_i8()
    }

    fn read_i16(&mut self) -> Result<i16> {
        self.inner.read_i16()
    }

    fn read_i32(&mut self) -> Result<i32> {
        self.inner.read_i32()
    }

    fn read_i64(&mut self) -> Result<i64> {
        self.inner.read_i64()
    }

    fn read_double(&mut self) -> Result<f64> {
        self.inner.read_double()
    }

    fn read_uuid(&mut self) -> Result<uuid::Uuid> {
        self.inner.read_uuid()
    }

    fn read_list_end(&mut self) -> Result<()> {
        self.inner.read_list_end()
    }

    fn read_set_end(&mut self) -> Result<()> {
        self.inner.read_set_end()
    }

    fn read_map_end(&mut self) -> Result<()> {
        self.inner.read_map_end()
    }

    fn read_byte(&mut self) -> Result<u8> {
        self.inner.read_byte()
    }
}

fn refused(kind: ProtocolErrorKind, message: &str) -> thrift::Error {
    thrift::Error::Protocol(ProtocolError::new(kind, message))
}
