//! What the gateway sends, read back strictly: anything that is not MQTT fails the test.

use std::collections::BTreeMap;

use super::bytes::Version;

/// One packet of the gateway, or the end of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    ConnAck(ConnAck),
    Publish(Push),
    PubAck {
        id: u16,
        code: u8,
    },
    PubRec {
        id: u16,
        code: u8,
    },
    PubRel {
        id: u16,
        code: u8,
    },
    PubComp {
        id: u16,
        code: u8,
    },
    SubAck {
        id: u16,
        codes: Vec<u8>,
    },
    /// 3.1.1 has no codes.
    UnsubAck {
        id: u16,
        codes: Vec<u8>,
    },
    PingResp,
    Disconnect {
        code: u8,
    },
    Closed,
}

/// CONNACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnAck {
    pub is_present: bool,
    pub code: u8,
    pub properties: Properties,
}

/// PUBLISH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    pub is_dup: bool,
    pub qos: u8,
    pub is_retained: bool,
    /// As on the wire: empty behind a known alias.
    pub topic: String,
    pub id: u16,
    pub properties: Properties,
    pub payload: Vec<u8>,
    /// Of the whole packet.
    pub bytes: usize,
}

/// Properties, numbers by their id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    pub numbers: BTreeMap<u8, u32>,
    pub texts: BTreeMap<u8, String>,
    pub user: Vec<(String, String)>,
}

impl Push {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    pub fn alias(&self) -> Option<u16> {
        self.properties.numbers.get(&0x23).map(|alias| *alias as u16)
    }

    /// A user property.
    pub fn user(&self, name: &str) -> &str {
        let found = self.properties.user.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }
}

impl ConnAck {
    pub fn number(&self, id: u8) -> Option<u32> {
        self.properties.numbers.get(&id).copied()
    }
}

/// Takes the first whole packet out of `buffer`, if there is one.
pub fn take(version: Version, buffer: &mut Vec<u8>) -> Option<Seen> {
    let (remaining, header) = length(buffer)?;
    let total = header + remaining;
    if buffer.len() < total {
        return None;
    }
    let bytes: Vec<u8> = buffer.drain(..total).collect();
    let mut body = Body { left: &bytes[header..], version };
    let seen = body.packet(bytes[0], total);
    assert!(body.left.is_empty(), "bytes behind the last field: {bytes:02x?}");
    Some(seen)
}

fn length(buffer: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for at in 0..4 {
        let byte = *buffer.get(at + 1)?;
        value |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 2));
        }
    }
    panic!("the gateway sent a length of more than four bytes: {:02x?}", &buffer[..5]);
}

struct Body<'a> {
    left: &'a [u8],
    version: Version,
}

impl Body<'_> {
    fn packet(&mut self, first: u8, bytes: usize) -> Seen {
        match first {
            0x20 => Seen::ConnAck(self.connack()),
            0x30..=0x3F => Seen::Publish(self.publish(first, bytes)),
            0x40 => self.ack(|id, code| Seen::PubAck { id, code }),
            0x50 => self.ack(|id, code| Seen::PubRec { id, code }),
            0x62 => self.ack(|id, code| Seen::PubRel { id, code }),
            0x70 => self.ack(|id, code| Seen::PubComp { id, code }),
            0x90 => {
                let id = self.u16();
                self.properties();
                Seen::SubAck { id, codes: self.rest() }
            }
            0xB0 => {
                let id = self.u16();
                self.properties();
                Seen::UnsubAck { id, codes: self.rest() }
            }
            0xD0 => Seen::PingResp,
            0xE0 => {
                assert_eq!(self.version, Version::V5, "3.1.1 has no DISCONNECT from a server");
                let code = if self.left.is_empty() { 0 } else { self.u8() };
                if !self.left.is_empty() {
                    self.properties();
                }
                Seen::Disconnect { code }
            }
            other => panic!("a packet that no server sends: {other:#04x}"),
        }
    }

    fn connack(&mut self) -> ConnAck {
        let (flags, code) = (self.u8(), self.u8());
        assert!(flags <= 1, "reserved flags of CONNACK: {flags:#04x}");
        // A refusal may be told in 3.1.1's form, whatever the client spoke.
        let properties =
            if self.left.is_empty() { Properties::default() } else { self.properties() };
        ConnAck { is_present: flags == 1, code, properties }
    }

    fn publish(&mut self, first: u8, bytes: usize) -> Push {
        let qos = first >> 1 & 0x03;
        let topic = self.text();
        let id = if qos > 0 { self.u16() } else { 0 };
        assert_eq!(id == 0, qos == 0, "a packet id exactly above QoS 0");
        let properties = self.properties();
        Push {
            is_dup: first & 0x08 != 0,
            qos,
            is_retained: first & 0x01 != 0,
            topic,
            id,
            properties,
            payload: self.rest(),
            bytes,
        }
    }

    fn ack(&mut self, make: impl FnOnce(u16, u8) -> Seen) -> Seen {
        let id = self.u16();
        let code = if self.left.is_empty() { 0 } else { self.u8() };
        if !self.left.is_empty() {
            self.properties();
        }
        make(id, code)
    }

    fn properties(&mut self) -> Properties {
        let mut found = Properties::default();
        if self.version == Version::V311 {
            return found;
        }
        let length = self.varint();
        let (block, left) = self.left.split_at(length);
        let mut block = Body { left: block, version: self.version };
        self.left = left;
        while !block.left.is_empty() {
            block.property(&mut found);
        }
        found
    }

    fn property(&mut self, found: &mut Properties) {
        let id = self.u8();
        let number = match id {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2A => u32::from(self.u8()),
            0x13 | 0x21 | 0x22 | 0x23 => u32::from(self.u16()),
            0x02 | 0x11 | 0x18 | 0x27 => u32::from(self.u16()) << 16 | u32::from(self.u16()),
            0x0B => self.varint() as u32,
            0x26 => return found.user.push((self.text(), self.text())),
            0x03 | 0x08 | 0x12 | 0x15 | 0x1A | 0x1C | 0x1F => {
                let text = self.text();
                assert!(found.texts.insert(id, text).is_none(), "property {id:#04x} twice");
                return;
            }
            other => panic!("an unknown property: {other:#04x}"),
        };
        assert!(found.numbers.insert(id, number).is_none(), "property {id:#04x} twice");
    }

    fn u8(&mut self) -> u8 {
        let (first, left) = self.left.split_first().expect("a byte more");
        self.left = left;
        *first
    }

    fn u16(&mut self) -> u16 {
        u16::from(self.u8()) << 8 | u16::from(self.u8())
    }

    fn varint(&mut self) -> usize {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8();
            value |= usize::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return value;
            }
        }
        panic!("a length of more than four bytes");
    }

    fn text(&mut self) -> String {
        let length = usize::from(self.u16());
        let (text, left) = self.left.split_at(length);
        self.left = left;
        String::from_utf8(text.to_vec()).expect("UTF-8")
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.left).to_vec()
    }
}
