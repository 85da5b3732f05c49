"""paho-mqtt as a device."""

import os
import signal
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

VERSION_5 = os.environ["MQTT_VERSION"] == "5"
FILTERS = os.environ["FILTERS"].split()
stop = threading.Event()
failure = []


def on_connect(client, _userdata, _flags, reason, _properties):
    if reason.is_failure:
        failure.append(f"CONNACK: {reason}")
        stop.set()
        return
    client.subscribe([(name, 1) for name in FILTERS])


def on_subscribe(_client, _userdata, _mid, reasons, _properties):
    if any(reason.is_failure for reason in reasons):
        failure.append(f"SUBACK: {reasons}")
        stop.set()
        return
    print("ready", flush=True)


def on_message(_client, _userdata, message):
    print("message", message.topic, message.payload.decode(), flush=True)


def main():
    protocol = mqtt.MQTTv5 if VERSION_5 else mqtt.MQTTv311
    session = {} if VERSION_5 else {"clean_session": False}
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2, os.environ["DEVICE_ID"], protocol=protocol, **session
    )
    client.username_pw_set(os.environ["DEVICE_ID"], os.environ["SECRET"])
    if os.environ["TRANSPORT"] == "tls":
        client.tls_set(os.environ["CA_FILE"])
    client.on_connect = on_connect
    client.on_subscribe = on_subscribe
    client.on_message = on_message
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    options = {}
    if VERSION_5:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        options = {"clean_start": False, "properties": properties}
    client.connect(os.environ["HOST"], int(os.environ["PORT"]), keepalive=30, **options)
    client.loop_start()
    stop.wait()
    client.disconnect()
    client.loop_stop()
    if failure:
        raise SystemExit(failure[0])


main()
