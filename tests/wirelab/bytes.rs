//! MQTT packets as bytes, right or wrong, as the test wants them.

/// Which MQTT is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    V311,
    V5,
}

/// Both of them.
pub const VERSIONS: [Version; 2] = [Version::V311, Version::V5];

pub const PINGREQ: [u8; 2] = [0xC0, 0];
pub const PUBACK: u8 = 0x40;
pub const PUBREC: u8 = 0x50;
pub const PUBREL: u8 = 0x62;
pub const PUBCOMP: u8 = 0x70;

/// A CONNECT; what is not said is a valid default.
#[derive(Clone, Debug)]
pub struct Connect {
    pub version: Version,
    pub client_id: Vec<u8>,
    pub user: Option<Vec<u8>>,
    pub password: Option<Vec<u8>>,
    pub is_clean: bool,
    pub keep_alive_s: u16,
    /// The bytes of the properties, without their length.
    pub properties: Vec<u8>,
    pub will: Option<Will>,
}

/// The Will of a CONNECT.
#[derive(Clone, Debug, Default)]
pub struct Will {
    pub topic: Vec<u8>,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub is_retained: bool,
    pub properties: Vec<u8>,
}

/// A PUBLISH.
#[derive(Clone, Debug)]
pub struct Publish {
    pub version: Version,
    pub topic: Vec<u8>,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub id: u16,
    pub is_dup: bool,
    pub is_retained: bool,
    pub properties: Vec<u8>,
}

impl Connect {
    /// Client id and user name are the device's, as it should be.
    pub fn new(version: Version, device_id: &str, secret: &str) -> Self {
        Self {
            version,
            client_id: device_id.into(),
            user: Some(device_id.into()),
            password: Some(secret.into()),
            is_clean: true,
            keep_alive_s: 60,
            properties: Vec::new(),
            will: None,
        }
    }

    /// A session that outlives its connection by so many seconds (5; in 3.1.1 as the gateway allows).
    pub fn persistent(mut self, expiry_s: u32) -> Self {
        self.is_clean = false;
        if self.version == Version::V5 {
            self.properties.extend(number4(0x11, expiry_s));
        }
        self
    }

    /// With a property more.
    pub fn with(mut self, property: impl AsRef<[u8]>) -> Self {
        self.properties.extend_from_slice(property.as_ref());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        packet(0x10, &self.body())
    }

    /// All behind the fixed header.
    pub fn body(&self) -> Vec<u8> {
        let level = if self.version == Version::V5 { 5 } else { 4 };
        let mut flags = u8::from(self.is_clean) << 1;
        if let Some(will) = &self.will {
            flags |= 0x04 | will.qos << 3 | u8::from(will.is_retained) << 5;
        }
        flags |= u8::from(self.user.is_some()) << 7 | u8::from(self.password.is_some()) << 6;
        let mut body = text("MQTT");
        body.extend([level, flags]);
        body.extend(self.keep_alive_s.to_be_bytes());
        let is_v5 = self.version == Version::V5;
        if is_v5 {
            body.extend(block(&self.properties));
        }
        body.extend(text(&self.client_id));
        if let Some(will) = &self.will {
            if is_v5 {
                body.extend(block(&will.properties));
            }
            body.extend(text(&will.topic));
            body.extend(text(&will.payload));
        }
        for field in [&self.user, &self.password].into_iter().flatten() {
            body.extend(text(field));
        }
        body
    }
}

impl Publish {
    /// QoS 0.
    pub fn new(version: Version, topic: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> Self {
        Self {
            version,
            topic: topic.as_ref().to_vec(),
            payload: payload.as_ref().to_vec(),
            qos: 0,
            id: 0,
            is_dup: false,
            is_retained: false,
            properties: Vec::new(),
        }
    }

    pub fn qos(self, qos: u8, id: u16) -> Self {
        Self { qos, id, ..self }
    }

    pub fn with(mut self, property: impl AsRef<[u8]>) -> Self {
        self.properties.extend_from_slice(property.as_ref());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let flags = u8::from(self.is_dup) << 3 | self.qos << 1 | u8::from(self.is_retained);
        packet(0x30 | flags, &self.body())
    }

    /// All behind the fixed header.
    pub fn body(&self) -> Vec<u8> {
        let mut body = text(&self.topic);
        if self.qos > 0 {
            body.extend(self.id.to_be_bytes());
        }
        if self.version == Version::V5 {
            body.extend(block(&self.properties));
        }
        body.extend(&self.payload);
        body
    }
}

/// A whole packet: the first byte, the length, the body.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    packet.extend(varint(body.len()));
    packet.extend(body);
    packet
}

/// A header that announces a length, without the body.
pub fn header(first: u8, remaining: usize) -> Vec<u8> {
    let mut header = vec![first];
    header.extend(varint(remaining));
    header
}

pub fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value & 0x7F) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// A string or binary with its length in front.
pub fn text(content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let length = u16::try_from(content.len()).expect("at most 65,535 bytes");
    [&length.to_be_bytes(), content].concat()
}

/// A property block: its length, then the properties.
pub fn block(properties: &[u8]) -> Vec<u8> {
    [&varint(properties.len())[..], properties].concat()
}

pub fn number2(id: u8, value: u16) -> Vec<u8> {
    [&[id][..], &value.to_be_bytes()].concat()
}

pub fn number4(id: u8, value: u32) -> Vec<u8> {
    [&[id][..], &value.to_be_bytes()].concat()
}

pub fn session_expiry(seconds: u32) -> Vec<u8> {
    number4(0x11, seconds)
}

pub fn receive_max(count: u16) -> Vec<u8> {
    number2(0x21, count)
}

pub fn alias_max(count: u16) -> Vec<u8> {
    number2(0x22, count)
}

pub fn topic_alias(alias: u16) -> Vec<u8> {
    number2(0x23, alias)
}

pub fn packet_max(bytes: u32) -> Vec<u8> {
    number4(0x27, bytes)
}

pub fn auth_method(name: &str) -> Vec<u8> {
    [&[0x15][..], &text(name)].concat()
}

pub fn user_property(name: &str, value: &str) -> Vec<u8> {
    [&[0x26][..], &text(name), &text(value)].concat()
}

/// SUBSCRIBE with options for each filter: in both versions the QoS is in the low bits.
pub fn subscribe(version: Version, id: u16, filters: &[(&[u8], u8)]) -> Vec<u8> {
    subscribe_with(version, id, &[], filters)
}

pub fn subscribe_with(
    version: Version,
    id: u16,
    properties: &[u8],
    filters: &[(&[u8], u8)],
) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.extend(block(properties));
    }
    for (filter, options) in filters {
        body.extend(text(filter));
        body.push(*options);
    }
    packet(0x82, &body)
}

pub fn unsubscribe(version: Version, id: u16, filters: &[&[u8]]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.push(0);
    }
    filters.iter().for_each(|filter| body.extend(text(filter)));
    packet(0xA2, &body)
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP with nothing but the id.
pub fn ack(first: u8, id: u16) -> Vec<u8> {
    packet(first, &id.to_be_bytes())
}

/// A normal DISCONNECT.
pub fn disconnect() -> Vec<u8> {
    vec![0xE0, 0]
}

/// A DISCONNECT of MQTT 5 with properties.
pub fn disconnect_with(reason: u8, properties: &[u8]) -> Vec<u8> {
    packet(0xE0, &[&[reason][..], &block(properties)].concat())
}
