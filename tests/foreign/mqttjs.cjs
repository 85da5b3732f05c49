// mqtt.js as a device, over TCP or WebSocket.
'use strict'

const mqtt = require('mqtt')

const { HOST, PORT, TRANSPORT, MQTT_VERSION, DEVICE_ID, SECRET, FILTERS } = process.env
const url = TRANSPORT === 'ws' ? `ws://${HOST}:${PORT}/mqtt` : `mqtt://${HOST}:${PORT}`
const options = {
  clientId: DEVICE_ID,
  username: DEVICE_ID,
  password: SECRET,
  protocolVersion: Number(MQTT_VERSION),
  clean: false,
  keepalive: 30,
  reconnectPeriod: 0,
  resubscribe: false
}
if (MQTT_VERSION === '5') options.properties = { sessionExpiryInterval: 3600 }

function fail (why) {
  console.error(why)
  process.exit(1)
}

const client = mqtt.connect(url, options)
client.on('error', fail)
client.on('message', (topic, payload) => console.log(`message ${topic} ${payload}`))
client.on('connect', () => {
  client.subscribe(FILTERS.split(' '), { qos: 1 }, (error, granted) => {
    if (error) fail(error)
    if (granted.some(({ qos }) => qos >= 128)) fail(JSON.stringify(granted))
    console.log('ready')
  })
})
let stopping = false
client.on('close', () => { if (!stopping) fail('the connection was closed') })
process.on('SIGTERM', () => {
  stopping = true
  client.end(false, {}, () => process.exit(0))
})
