#!/usr/bin/env bash
# mosquitto_pub as a device: publishes the file $FRAME to $TOPIC with QoS 1 and ends with its exit code.
set -euo pipefail

arguments=(-h "$HOST" -p "$PORT" -i "$DEVICE_ID" -u "$DEVICE_ID" -P "$SECRET" -q 1 -k 30)
case "$MQTT_VERSION" in
    4) arguments+=(-V mqttv311) ;;
    5) arguments+=(-V mqttv5) ;;
esac
[ "$TRANSPORT" = tls ] && arguments+=(--cafile "$CA_FILE")
exec mosquitto_pub "${arguments[@]}" -d -t "$TOPIC" -f "$FRAME"
