"""What neighbors say about announcements, as GossipSub 1.1 writes it: the strict gate before anything else sees it.

A message of a neighbor is read if it is small, speaks of our one topic only, and every field has the form that it has
in an honest one; whatever else it contains is a broken rule of that neighbor. What is left is handed on as plain values
(``gossipsub.Rpc``), so that nothing behind the gate has to doubt them. Signatures are checked apart: they cost more.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.crypto.keys import PrivateKey
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from gossip.errors import RemoteError
from peer.network.gossipsub import Message, Rpc
from peer.network.identity import is_peer_id
from peer.network.transport import ANNOUNCEMENT_BYTES_MAX

RPC_BYTES_MAX = 64 * 1024
"""Largest RPC that is read: a few of the largest announcements. Source: guess."""
MESSAGES_MAX = 256
"""Announcements in one RPC. Source: guess."""
IDS_MAX = 512
"""Ids in one RPC, of what a neighbor has and of what it wants. Source: guess; we send 64."""
CONTROL_MAX = 8
"""Parts of one kind in an RPC: ours has one, a library may write one for each topic. Source: guess."""
NUMBER_BYTES = 8
"""Of a sequence number. Source: specification."""
SIGNATURE_BYTES = 64
"""Of Ed25519, the only kind of key that peers have."""
KEY_BYTES = 36
"""Of its public key, which the author's id contains already."""
ID_BYTES = 38 + NUMBER_BYTES
"""Author and number: what names a message."""
_SIGNED_PREFIX = b"libp2p-pubsub:"  # specification
_KEY_AT = 6  # of the author's id: two bytes of multihash, four of protobuf before the key itself


def decode_rpc(data: bytes, topic: str) -> Rpc:
    """Return what a neighbor said of our topic.

    Raises:
        RemoteError: ``announcement``: it breaks the rules; the detail says which.
    """
    rpc = rpc_pb2.RPC()
    try:
        rpc.ParseFromString(data)
    except DecodeError as error:
        raise _broken("not protobuf") from error
    control = rpc.control
    _require(len(rpc.publish) <= MESSAGES_MAX, "too many announcements")
    for parts in (rpc.subscriptions, control.ihave, control.iwant, control.graft, control.prune):
        _require(len(parts) <= CONTROL_MAX, "too many parts")
    topics = {option.topicid for option in rpc.subscriptions}
    topics |= {part.topicID for parts in (control.ihave, control.graft, control.prune) for part in parts}
    _require(topics <= {topic}, "another topic")
    _require(not any(part.peers for part in control.prune), "peers to dial")
    return Rpc(
        subscribed=rpc.subscriptions[-1].subscribe if rpc.subscriptions else None,
        messages=tuple(_message(message, topic) for message in rpc.publish),
        have=_ids(list(control.ihave)),
        want=_ids(list(control.iwant)),
        graft=bool(control.graft),
        prune_s=control.prune[-1].backoff if control.prune else None,
    )


def encode_rpc(rpc: Rpc, topic: str) -> bytes:
    """Return an RPC as it travels."""
    said = rpc_pb2.RPC()
    if rpc.subscribed is not None:
        said.subscriptions.add(subscribe=rpc.subscribed, topicid=topic)
    for message in rpc.messages:
        said.publish.add().ParseFromString(message.wire)
    if rpc.have:
        said.control.ihave.add(topicID=topic, messageIDs=rpc.have)
    if rpc.want:
        said.control.iwant.add(messageIDs=rpc.want)
    if rpc.graft:
        said.control.graft.add(topicID=topic)
    if rpc.prune_s is not None:
        said.control.prune.add(topicID=topic, backoff=rpc.prune_s)
    return bytes(said.SerializeToString())


def signed(data: bytes, topic: str, number: int, key: PrivateKey) -> Message:
    """Return a new announcement of our own; ``number`` was not used before by the same key."""
    author = ID.from_pubkey(key.get_public_key())
    message = rpc_pb2.Message(
        data=data, topicIDs=[topic], from_id=author.to_bytes(), seqno=number.to_bytes(NUMBER_BYTES, "big")
    )
    message.signature = key.sign(_SIGNED_PREFIX + message.SerializeToString())
    return _message(message, topic)


def is_signed(message: Message) -> bool:
    """Whether the author has made the signature of a message that has come through the gate."""
    said = rpc_pb2.Message()
    said.ParseFromString(message.wire)
    key, signature = Ed25519PublicKey.from_bytes(said.from_id[_KEY_AT:]), said.signature
    said.ClearField("signature")
    said.ClearField("key")
    return bool(key.verify(_SIGNED_PREFIX + said.SerializeToString(), signature))


def _message(said: rpc_pb2.Message, topic: str) -> Message:
    author = ID(said.from_id).to_base58() if len(said.from_id) == ID_BYTES - NUMBER_BYTES else ""
    _require(is_peer_id(author), "no author")
    _require(list(said.topicIDs) == [topic], "another topic")
    _require(len(said.seqno) == NUMBER_BYTES, "the number")
    _require(len(said.signature) == SIGNATURE_BYTES, "the signature's length")
    _require(len(said.key) in (0, KEY_BYTES), "the key's length")
    _require(len(said.data) <= ANNOUNCEMENT_BYTES_MAX, "too long")
    clean = rpc_pb2.Message(
        data=said.data, topicIDs=[topic], from_id=said.from_id, seqno=said.seqno, signature=said.signature
    )  # without fields that we do not know, which would travel on
    return Message(said.from_id + said.seqno, author, said.data, clean.SerializeToString())


def _ids(parts: list[rpc_pb2.ControlIHave] | list[rpc_pb2.ControlIWant]) -> tuple[bytes, ...]:
    _require(sum(len(part.messageIDs) for part in parts) <= IDS_MAX, "too many ids")
    ids = tuple(id if isinstance(id, bytes) else id.encode() for part in parts for id in part.messageIDs)
    _require(all(len(id) == ID_BYTES for id in ids), "an id's length")
    return ids


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise _broken(rule)


def _broken(rule: str) -> RemoteError:
    return RemoteError("announcement", rule)
