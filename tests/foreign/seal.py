"""Sealed payloads in Python, written from docs/PROTOCOL.md 9 with `cryptography`: no code of the gateway's.

Run alone, it makes the test vectors of that section anew and compares them with the document:
python3 seal.py docs/PROTOCOL.md
"""

import hashlib
import hmac
import re
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

LABEL = b"carillon seal 1 "


def expand(prk, info, length):
    return HKDFExpand(algorithm=hashes.SHA256(), length=length, info=info).derive(prk)


def public_of(private):
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def app_key(text):
    """(id, public key) of what ships inside the app."""
    number, public = text.split("-")
    return int(number), bytes.fromhex(public)


def registration_key(private, app_public, regid):
    shared = X25519PrivateKey.from_private_bytes(private).exchange(
        X25519PublicKey.from_public_bytes(app_public)
    )
    prk = hmac.digest(LABEL + b"registration", shared, hashlib.sha256)
    return expand(prk, app_public + public_of(private) + regid.encode(), 32)


def confirmation(key, number):
    return expand(key, LABEL + b"confirm\0" + number.to_bytes(4, "little"), 16)


def rekey_proof(key, number, app_key_id, public):
    info = number.to_bytes(4, "little") + app_key_id.to_bytes(4, "little") + public
    return expand(key, LABEL + b"rekey\0" + info, 16)


def queue_text(kind, name, epoch):
    return bytes([kind]) + name.encode() + b"\0" + epoch.to_bytes(4, "little")


def item_text(seq, message_id, time_ms):
    return seq.to_bytes(8, "little") + time_ms.to_bytes(8, "little", signed=True) + message_id


def nonce(seq, message_id):
    return message_id[-4:].ljust(4, b"\0") + seq.to_bytes(8, "big")


def associated(regid, queue, item):
    return regid.encode() + b"\0" + queue_text(*queue) + item_text(*item)


def own_key(key, queue):
    return expand(key, LABEL + b"own\0" + queue_text(*queue), 16)


def wrapping_key(key, queue):
    return expand(key, LABEL + b"wrap\0" + queue_text(*queue), 16)


def open_own(key, regid, queue, item, sealed):
    """Raises cryptography.exceptions.InvalidTag if any bit differs."""
    aes = AESGCM(own_key(key, queue))
    return aes.decrypt(nonce(item[0], item[1]), sealed, associated(regid, queue, item))


def open_shared(key, regid, queue, item, sealed, wrapped):
    at = nonce(item[0], item[1])
    bound = associated(regid, queue, item) + hashlib.sha256(sealed).digest()
    entry_key = AESGCM(wrapping_key(key, queue)).decrypt(at, wrapped, bound)
    return AESGCM(entry_key).decrypt(at, sealed, associated("", queue, item))


def seal_own(key, regid, queue, item, plaintext):
    aes = AESGCM(own_key(key, queue))
    return aes.encrypt(nonce(item[0], item[1]), plaintext, associated(regid, queue, item))


def seal_shared(secret, key, regid, queue, item, plaintext):
    """The gateway's part, for the vectors."""
    entry_key = expand(secret, LABEL + b"entry\0" + queue_text(*queue) + item_text(*item), 16)
    at = nonce(item[0], item[1])
    sealed = AESGCM(entry_key).encrypt(at, plaintext, associated("", queue, item))
    bound = associated(regid, queue, item) + hashlib.sha256(sealed).digest()
    return entry_key, sealed, AESGCM(wrapping_key(key, queue)).encrypt(at, entry_key, bound)


def vectors():
    """Name and value, in the document's order."""
    app, device, secret = bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96))
    regid = "mzxw6ytboi4dcmrtgq2tmnzyhe"
    message_id = bytes(range(1, 16))
    key = registration_key(device, public_of(app), regid)
    own, topic = (1, "", 7), (3, "news", 7)
    item = (42, message_id, 1_700_000_000_000)
    plaintext = bytes.fromhex("18077b2261223a317d00")
    entry_key, body, wrapped = seal_shared(secret, key, regid, topic, item, plaintext)
    own_body = seal_own(key, regid, own, item, plaintext)
    assert open_own(key, regid, own, item, own_body) == plaintext
    assert open_shared(key, regid, topic, item, body, wrapped) == plaintext
    return [
        ("app public key", public_of(app)),
        ("device public key", public_of(device)),
        ("registration key", key),
        ("confirmation of number 1", confirmation(key, 1)),
        ("proof for number 2, app key 5, the same public key", rekey_proof(key, 2, 5, public_of(device))),
        ("key of the own queue, epoch 7", own_key(key, own)),
        ("sealed body of the own queue", own_body),
        ("entry key of topic news, epoch 7", entry_key),
        ("sealed body of the topic", body),
        ("wrapped key", wrapped),
    ]


def main():
    made = vectors()
    if len(sys.argv) < 2:
        for name, value in made:
            print(f"| {name} | `{value.hex()}` |")
        return
    with open(sys.argv[1], encoding="utf-8") as file:
        document = file.read()
    for name, value in made:
        found = re.search(rf"^\| {re.escape(name)} \| `([0-9a-f]+)` \|$", document, re.MULTILINE)
        if not found or bytes.fromhex(found.group(1)) != value:
            raise SystemExit(f"the document differs in: {name}")
    print(f"{len(made)} vectors agree")


if __name__ == "__main__":
    main()
