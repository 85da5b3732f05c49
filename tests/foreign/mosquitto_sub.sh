#!/usr/bin/env bash
# mosquitto_sub as a device. Its debug lines tell when the subscriptions are granted.
set -euo pipefail

arguments=(-h "$HOST" -p "$PORT" -i "$DEVICE_ID" -u "$DEVICE_ID" -P "$SECRET" -q 1 -c -k 30)
case "$MQTT_VERSION" in
    4) arguments+=(-V mqttv311) ;;
    5) arguments+=(-V mqttv5 -x 3600) ;;
esac
[ "$TRANSPORT" = tls ] && arguments+=(--cafile "$CA_FILE")
for filter in $FILTERS; do
    arguments+=(-t "$filter")
done
# exec: a signal to this script must reach mosquitto_sub.
exec stdbuf -oL mosquitto_sub "${arguments[@]}" -d -F 'message %t %p' \
    > >(sed -u -n -e 's/^Subscribed (mid: .*/ready/p' -e '/^message /p')
