//! rumqttc as a plain device, in MQTT 3.1.1 and 5.

use std::time::Duration;

use rumqttc::{self as v4, v5};

use super::{
    Device, Node,
    client::{Client, Event, Feed, Message},
};

/// Connects with a persistent session, MQTT 3.1.1.
pub fn connect_v4(node: &Node, device: &Device, filters: &[&str]) -> Client {
    let options = options_v4(node, device);
    let filters: Vec<_> = filters
        .iter()
        .map(|path| v4::SubscribeFilter::new((*path).to_owned(), v4::QoS::AtLeastOnce))
        .collect();
    Client::start("rumqttc v4", move |feed| run_v4(options, filters, feed))
}

/// Connects with a session that outlives the connection, MQTT 5.
pub fn connect_v5(node: &Node, device: &Device, filters: &[&str]) -> Client {
    let address = node.listen().mqtt;
    let mut options =
        v5::MqttOptions::new(&device.device_id, address.ip().to_string(), address.port());
    options
        .set_credentials(&device.device_id, &device.secret)
        .set_clean_start(false)
        .set_session_expiry_interval(Some(3_600))
        .set_keep_alive(Duration::from_secs(30));
    let qos = v5::mqttbytes::QoS::AtLeastOnce;
    let filters: Vec<_> = filters
        .iter()
        .map(|path| v5::mqttbytes::v5::Filter::new((*path).to_owned(), qos))
        .collect();
    Client::start("rumqttc v5", move |feed| run_v5(options, filters, feed))
}

/// Connects, sends frames on `up`, and stays to acknowledge whatever comes down.
/// It is ready once the first frame came down.
pub fn exchange_frames(node: &Node, device: &Device, up: &[&[u8]]) -> Client {
    let options = options_v4(node, device);
    let frames: Vec<Vec<u8>> = up.iter().map(|frame| frame.to_vec()).collect();
    Client::start("rumqttc frames", move |feed| run_frames(options, frames, feed))
}

async fn run_frames(
    options: v4::MqttOptions,
    frames: Vec<Vec<u8>>,
    mut feed: Feed,
) -> Result<(), String> {
    use v4::{Event as Happening, Outgoing, Packet};
    let (client, mut events) = v4::AsyncClient::new(options, 64);
    for frame in frames {
        let sent = client.publish("up", v4::QoS::AtLeastOnce, false, frame).await;
        sent.map_err(|error| error.to_string())?;
    }
    let mut stopped = false;
    loop {
        let happened = tokio::select! {
            happened = events.poll() => happened.map_err(|error| error.to_string())?,
            _ = &mut feed.stop, if !stopped => {
                stopped = true;
                client.disconnect().await.map_err(|error| error.to_string())?;
                continue;
            }
        };
        match happened {
            Happening::Incoming(Packet::Publish(_)) => {
                let _ = feed.events.try_send(Event::Ready);
            }
            Happening::Outgoing(Outgoing::Disconnect) => return Ok(()),
            _ => {}
        }
    }
}

fn options_v4(node: &Node, device: &Device) -> v4::MqttOptions {
    let address = node.listen().mqtt;
    let mut options =
        v4::MqttOptions::new(&device.device_id, address.ip().to_string(), address.port());
    options
        .set_credentials(&device.device_id, &device.secret)
        .set_clean_session(false)
        .set_keep_alive(Duration::from_secs(30));
    options
}

async fn run_v4(
    options: v4::MqttOptions,
    filters: Vec<v4::SubscribeFilter>,
    mut feed: Feed,
) -> Result<(), String> {
    use v4::{Event as Happening, Outgoing, Packet};
    let (client, mut events) = v4::AsyncClient::new(options, 64);
    client.subscribe_many(filters).await.map_err(|error| error.to_string())?;
    let mut stopped = false;
    loop {
        let happened = tokio::select! {
            happened = events.poll() => happened.map_err(|error| error.to_string())?,
            _ = &mut feed.stop, if !stopped => {
                stopped = true;
                client.disconnect().await.map_err(|error| error.to_string())?;
                continue;
            }
        };
        let event = match happened {
            Happening::Incoming(Packet::SubAck(ack)) => {
                let refused = |code| code == &v4::SubscribeReasonCode::Failure;
                if ack.return_codes.iter().any(refused) {
                    return Err(format!("refused: {ack:?}"));
                }
                Event::Ready
            }
            Happening::Incoming(Packet::Publish(publish)) => Event::Message(Message {
                topic: publish.topic,
                payload: text(&publish.payload),
                properties: Vec::new(),
            }),
            Happening::Outgoing(Outgoing::Disconnect) => return Ok(()),
            _ => continue,
        };
        let _ = feed.events.send(event).await;
    }
}

async fn run_v5(
    options: v5::MqttOptions,
    filters: Vec<v5::mqttbytes::v5::Filter>,
    mut feed: Feed,
) -> Result<(), String> {
    use v5::{
        Event as Happening,
        mqttbytes::v5::{Packet, SubscribeReasonCode},
    };
    let (client, mut events) = v5::AsyncClient::new(options, 64);
    client.subscribe_many(filters).await.map_err(|error| error.to_string())?;
    let mut stopped = false;
    loop {
        let happened = tokio::select! {
            happened = events.poll() => happened.map_err(|error| error.to_string())?,
            _ = &mut feed.stop, if !stopped => {
                stopped = true;
                client.disconnect().await.map_err(|error| error.to_string())?;
                continue;
            }
        };
        let event = match happened {
            Happening::Incoming(Packet::SubAck(ack)) => {
                let granted = |code: &_| matches!(code, SubscribeReasonCode::Success(_));
                if !ack.return_codes.iter().all(granted) {
                    return Err(format!("refused: {ack:?}"));
                }
                Event::Ready
            }
            Happening::Incoming(Packet::Publish(publish)) => Event::Message(Message {
                topic: text(&publish.topic),
                payload: text(&publish.payload),
                properties: publish.properties.map(|p| p.user_properties).unwrap_or_default(),
            }),
            Happening::Outgoing(v4::Outgoing::Disconnect) => return Ok(()),
            _ => continue,
        };
        let _ = feed.events.send(event).await;
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}
