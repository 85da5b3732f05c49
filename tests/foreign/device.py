"""A device of Carillon in Python, written from docs/PROTOCOL.md: paho-mqtt and Apache Thrift.

It holds positions in a file, applies deltas by the rule of PROTOCOL.md 4.4, and acknowledges a frame
when the app has handled it and the positions are on disk. What is packed it unpacks (PROTOCOL.md 4.8), what is sealed for it, it opens (PROTOCOL.md 9). The test is its app: commands come as JSON
lines on stdin, and everything that happens is a JSON line on stdout.
"""

import json
import os
import sys
import threading

import paho.mqtt.client as mqtt
import seal
import zstandard
from carillon_device.ttypes import (
    Bind,
    Content,
    Down,
    JumpReason,
    Position,
    Positions,
    Queue,
    QueueKind,
    Register,
    RegistrationPositions,
    Resume,
    SealOffer,
    Subscribe,
    Unbind,
    Unsubscribe,
    Up,
)
from cryptography.exceptions import InvalidTag
from thrift.protocol.TCompactProtocol import TCompactProtocolFactory
from thrift.TSerialization import deserialize, serialize

COMPACT = TCompactProtocolFactory()
with open(os.environ["DICTIONARY"], "rb") as dictionary:
    UNPACK = zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(dictionary.read()))
MASK = (1 << 64) - 1


# --- the digest (PROTOCOL.md 5)


def position_hash(regid, kind, name, epoch, seq):
    data = regid.encode() + bytes([0, kind]) + name.encode() + b"\0"
    data += epoch.to_bytes(4, "little") + seq.to_bytes(8, "little")
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & MASK
    h = ((h ^ (h >> 33)) * 0xFF51AFD7ED558CCD) & MASK
    h = ((h ^ (h >> 33)) * 0xC4CEB9FE1A85EC53) & MASK
    return h ^ (h >> 33)


def signed(number):
    return number - (1 << 64) if number >> 63 else number


VECTORS = [
    (("", 1, "", 0, 0), 0x8B8C177B906E2025),
    (("r1", 1, "", 1, 0), 0xFB4DE2D8ABC64000),
    (("r1", 1, "", 1, 1), 0x6D939CDCD1B07E40),
    (("r1", 2, "alice", 1, 42), 0x3B892AC2869BCB45),
    (("r1", 3, "news", 7, 1000000), 0xE6810B2BB34485AF),
    (("r1", 4, "", 1, 42), 0x0C9DBBF46EE16F7E),
    (("r2", 2, "älgört", 2147483647, 9223372036854775807), 0x5577D266187F1710),
    (("MTIzNDU2Nzg5MDEyMzQ1Ng", 3, "weather/oslo", 3, 281474976710656), 0x65ACAC4595CD5428),
]


# --- what the device knows


class Store:
    """Positions by regid and queue, the ids that were shown; on disk before anything is acknowledged."""

    def __init__(self, path):
        self.path = path
        self.registrations = {}
        self.shown = set()
        # By app: the private half that was offered, and the app's key. By regid: number, key, and what was opened.
        self.pairs = {}
        self.seals = {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                stored = json.load(file)
            self.shown = set(stored["shown"])
            self.pairs = stored["pairs"]
            self.seals = stored["seals"]
            for regid, positions in stored["registrations"].items():
                self.registrations[regid] = {tuple(key): value for key, value in positions}

    def save(self):
        stored = {
            "shown": sorted(self.shown),
            "pairs": self.pairs,
            "seals": self.seals,
            "registrations": {
                regid: list(positions.items()) for regid, positions in self.registrations.items()
            },
        }
        with open(self.path + ".new", "w", encoding="utf-8") as file:
            json.dump(stored, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.path + ".new", self.path)

    def digest(self):
        total = sum(
            position_hash(regid, kind, name, epoch, seq)
            for regid, positions in self.registrations.items()
            for (kind, name), (epoch, seq, _tag) in positions.items()
        )
        return signed(total & MASK)

    def stated(self, regid):
        return RegistrationPositions(
            regid=regid,
            positions=[
                Position(
                    queue=Queue(kind=kind, name=name or None),
                    epoch=epoch,
                    seq=seq,
                    tag=bytes.fromhex(tag) if tag else None,
                )
                for (kind, name), (epoch, seq, tag) in self.registrations[regid].items()
            ],
        )


def key_of(queue):
    return (queue.kind, queue.name or "")


def name_of(key):
    kind, name = key
    label = QueueKind._VALUES_TO_NAMES.get(kind, str(kind)).lower()
    return f"{label}/{name}" if name else label


def say(event, **fields):
    # One write for a line: two threads speak.
    sys.stdout.write(json.dumps({"event": event, **fields}, ensure_ascii=False) + "\n")
    sys.stdout.flush()


class Device:
    def __init__(self):
        self.store = Store(os.environ["STATE_FILE"])
        self.lock = threading.RLock()
        self.client = None
        self.unfollowed = set()
        self.stating = False
        self.holding = False
        self.held = []
        self.registering = {}

    # --- the connection (PROTOCOL.md 3, 4.3)

    def connect(self):
        device_id = os.environ["DEVICE_ID"]
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, device_id, protocol=mqtt.MQTTv5, manual_ack=True
        )
        client.username_pw_set(device_id, os.environ["SECRET"])
        client.on_connect = lambda _c, _u, _f, reason, _p: say("connected", code=reason.value)
        client.on_message = self.on_message
        client.on_disconnect = lambda _c, _u, _f, reason, _p: say("offline", code=reason.value)
        self.client = client
        self.stating = False
        client.connect(os.environ["HOST"], int(os.environ["PORT"]), keepalive=30, clean_start=True)
        # Without waiting for CONNACK.
        self.send(Up(resume=Resume(digest=self.store.digest(), dictionary=1)))
        client.loop_start()

    def disconnect(self):
        self.client.disconnect()
        self.client.loop_stop()
        self.held = []
        self.holding = False

    def send(self, up):
        self.client.publish("up", serialize(up, COMPACT), qos=1)

    def state(self, registrations):
        self.stating = True
        self.send(Up(positions=Positions(registrations=registrations)))

    # --- frames

    def unpack(self, packed):
        """What was packed (PROTOCOL.md 4.8)."""
        size = zstandard.frame_content_size(packed.zstd)
        if packed.dictionary != 1 or size != packed.bytes or size > 128 << 10:
            raise SystemExit("not a packed frame")
        plain = UNPACK.decompress(packed.zstd)
        say("packed", bytes=size, packed_bytes=len(packed.zstd))
        return deserialize(Down(), plain, COMPACT)

    def on_message(self, client, _userdata, message):
        with self.lock:
            down = deserialize(Down(), message.payload, COMPACT)
            if down.packed is not None:
                down = self.unpack(down.packed)
            if down.deltas is not None:
                try:
                    self.open_all(down.deltas)
                except (InvalidTag, KeyError, ValueError):
                    # Not acknowledged: it comes again on the next connection.
                    say("refused", regid=down.deltas.regid)
                    return
                self.apply_all(down.deltas)
            elif down.resumed is not None:
                self.resumed(down.resumed.regids)
            elif down.ask_positions is not None:
                say("asked")
                self.state([self.store.stated(regid) for regid in self.store.registrations])
            elif down.result is not None:
                self.result(down.result)
            elif down.advice is not None:
                say("advice", reconnect_after_ms=down.advice.reconnect_after_ms)
            elif down.ended is not None:
                self.store.registrations.pop(down.ended.regid, None)
                self.store.save()
                say("ended", regid=down.ended.regid)
            if self.holding and down.deltas is not None:
                self.held.append((message.mid, message.qos))
            else:
                client.ack(message.mid, message.qos)

    def resumed(self, regids):
        self.stating = False
        if regids is not None:
            for regid in set(self.store.registrations) - set(regids):
                del self.store.registrations[regid]
            self.store.save()
        say("resumed", regids=regids)

    def result(self, result):
        if result.request in self.registering and result.code == 0:
            app_id = self.registering[result.request]
            self.store.registrations.setdefault(result.regid, {})
            if app_id in self.store.pairs:
                self.agree(app_id, result)
            self.store.save()
        say("result", request=result.request, code=result.code, regid=result.regid)

    # --- sealed payloads (PROTOCOL.md 9)

    def offer(self, app_id, app_key):
        """The same pair for the app until it has an answer, and after it."""
        if app_id not in self.store.pairs:
            self.store.pairs[app_id] = {"private": os.urandom(32).hex(), "app": app_key}
            self.store.save()
        pair = self.store.pairs[app_id]
        number, _public = seal.app_key(pair["app"])
        return SealOffer(app_key=number, public_key=seal.public_of(bytes.fromhex(pair["private"])))

    def agree(self, app_id, result):
        pair = self.store.pairs[app_id]
        _number, public = seal.app_key(pair["app"])
        key = seal.registration_key(bytes.fromhex(pair["private"]), public, result.regid)
        number = result.seal.number
        if seal.confirmation(key, number) != result.seal.confirmation:
            raise SystemExit("somebody else than the gateway answers")
        known = self.store.seals.setdefault(result.regid, {"opened": []})
        known.update(number=number, key=key.hex())

    def open_all(self, deltas):
        """Opens every message of a frame before anything of it is applied."""
        known = self.store.seals.get(deltas.regid)
        opened = {tuple(key): tuple(at) for key, at in known["opened"]} if known else {}
        for delta in deltas.deltas:
            wrapped = delta.wrapped_keys or b""
            key = key_of(delta.queue)
            for entry in delta.entries:
                if entry.id is None or (known is None and entry.sealed is None):
                    continue
                if entry.sealed is not None and key[0] != QueueKind.OWN:
                    mine, wrapped = wrapped[:32], wrapped[32:]
                at = (delta.epoch, entry.seq)
                if at <= opened.get(key, (0, 0)):
                    # A replay or an overlap: nothing is shown twice.
                    entry.id = None
                    continue
                if known["number"] != delta.key_number or entry.sealed is None:
                    raise ValueError("not sealed with the registration's key")
                queue, item = (*key, delta.epoch), (entry.seq, entry.id, entry.time_ms)
                secret = bytes.fromhex(known["key"])
                if key[0] == QueueKind.OWN:
                    plain = seal.open_own(secret, deltas.regid, queue, item, entry.sealed)
                else:
                    plain = seal.open_shared(secret, deltas.regid, queue, item, entry.sealed, mine)
                content = deserialize(Content(), plain, COMPACT)
                entry.payload, entry.notification = content.payload, content.notification
                opened[key] = at
        if known:
            known["opened"] = list(opened.items())

    # --- deltas (PROTOCOL.md 4.4)

    def apply_all(self, deltas):
        regid = deltas.regid
        gap = False
        for delta in deltas.deltas:
            gap |= not self.apply(regid, delta)
        self.store.save()
        if gap and not self.stating:
            self.store.registrations.setdefault(regid, {})
            self.state([self.store.stated(regid)])

    def apply(self, regid, delta):
        positions = self.store.registrations.setdefault(regid, {})
        key = key_of(delta.queue)
        epoch, last, _tag = positions.get(key, (None, None, None))
        if delta.jump is not None:
            rule, behind, seq = 1, None, delta.to_seq
        elif epoch == delta.epoch and delta.from_seq == last + 1:
            rule, behind, seq = 2, last, delta.to_seq
        elif epoch == delta.epoch and delta.from_seq <= last:
            rule, behind, seq = 3, last, max(last, delta.to_seq)
        else:
            rule, behind, seq = 4, None, None
        say(
            "delta",
            regid=regid,
            queue=name_of(key),
            rule=rule,
            epoch=delta.epoch,
            from_seq=delta.from_seq,
            to_seq=delta.to_seq,
            jump=JumpReason._VALUES_TO_NAMES.get(delta.jump),
        )
        if rule == 4:
            return (regid, key) in self.unfollowed
        for entry in delta.entries:
            if behind is None or entry.seq > behind:
                self.handle(regid, key, entry)
        if seq == delta.to_seq:
            positions[key] = (delta.epoch, seq, delta.tag.hex())
        return True

    def handle(self, regid, key, entry):
        positions = self.store.registrations[regid]
        if entry.follow is not None:
            followed = key_of(entry.follow.queue)
            positions[followed] = (entry.follow.epoch, entry.follow.since, None)
            self.unfollowed.discard((regid, followed))
            say("follow", regid=regid, queue=name_of(followed))
        elif entry.unfollow is not None:
            unfollowed = key_of(entry.unfollow.queue)
            positions.pop(unfollowed, None)
            self.unfollowed.add((regid, unfollowed))
            say("unfollow", regid=regid, queue=name_of(unfollowed))
        elif entry.recall is not None:
            say("recall", regid=regid, id=entry.recall.hex())
        elif entry.id is not None:
            message_id = entry.id.hex()
            new = message_id not in self.store.shown
            self.store.shown.add(message_id)
            say(
                "message",
                regid=regid,
                queue=name_of(key),
                seq=entry.seq,
                id=message_id,
                new=new,
                payload=entry.payload.decode(),
            )

    # --- the app's commands

    def obey(self, command):
        do = command.pop("do")
        request = command.get("request")
        regid = command.get("regid")
        if do == "connect":
            self.connect()
        elif do == "disconnect":
            self.disconnect()
        elif do == "register":
            app_id = command["app_id"]
            self.registering[request] = app_id
            key = command.get("seal")
            offer = self.offer(app_id, key) if key else None
            what = Register(app_id=app_id, app_key=command["app_key"], seal=offer)
            self.send(Up(request=request, register_app=what))
        elif do == "bind":
            self.send(Up(request=request, bind=Bind(regid=regid, alias_name=command["alias"])))
        elif do == "unbind":
            self.send(Up(request=request, unbind=Unbind(regid=regid, alias_name=command["alias"])))
        elif do == "subscribe":
            what = Subscribe(regid=regid, topics=command["topics"])
            self.send(Up(request=request, subscribe=what))
        elif do == "unsubscribe":
            what = Unsubscribe(regid=regid, topics=command["topics"])
            self.send(Up(request=request, unsubscribe=what))
        elif do == "hold":
            self.holding = True
        elif do == "release":
            self.holding = False
            for mid, qos in self.held:
                self.client.ack(mid, qos)
            self.held = []
        elif do == "lose":
            self.store.registrations[regid].pop(self.find(regid, command["queue"]))
            self.store.save()
        elif do == "know":
            # The device was given its regID by POST /v1/devices.
            self.store.registrations.setdefault(regid, {})
            self.store.save()
        elif do == "move":
            # Bad storage: the position is some entries away from the truth, and its tag is lost.
            key = self.find(regid, command["queue"])
            epoch, seq, _tag = self.store.registrations[regid][key]
            self.store.registrations[regid][key] = (epoch, seq + command["by"], None)
            self.store.save()
        elif do == "state":
            # States positions that are some entries away from what the device holds, and keeps those.
            stated = self.store.stated(regid)
            for position in stated.positions:
                if name_of(key_of(position.queue)) == command["queue"]:
                    position.seq += command["by"]
                    position.tag = None
            self.state([stated])
        elif do == "positions":
            positions = self.store.registrations.get(regid, {}).items()
            say("positions", positions={name_of(key): value[:2] for key, value in positions})
        else:
            raise SystemExit(f"unknown command {do}")

    def find(self, regid, queue):
        return next(k for k in self.store.registrations[regid] if name_of(k) == queue)


def main():
    for parts, expected in VECTORS:
        assert position_hash(*parts) == expected, parts
    total = sum(expected for _parts, expected in VECTORS) & MASK
    assert signed(total) == -2433624130026534385
    seal.vectors()
    device = Device()
    say("started")
    for line in sys.stdin:
        with device.lock:
            command = json.loads(line)
            if command["do"] != "disconnect":
                device.obey(command)
                say("obeyed")
                continue
        # Without the lock: paho's thread, which is waited for, may be waiting for it.
        device.obey(command)
        say("obeyed")


main()
