"""A method of a comparison as one line of text: a topology or a baseline, then settings, checked word by word.

``"epidemic:3 codec=int8 local_steps=5"``: settings are options of a peer, so what a method can be is what
a peer can be. Only those that leave data, tokens and learning rate alike may differ between methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gossip.errors import LocalError
from peer.config import OPTIONS
from peer.options import Role, names_with
from scripts.lab.spec import did_you_mean

BASELINES: Mapping[str, str] = {
    "local": "each peer alone",
    "centralized": "one adapter, every step on a batch of every peer: what sharing all text would give",
    "fedavg": "a server averages all adapters after every round, peers counting alike (FedAvg, arXiv 1602.05629)",
}
"""Regimes that every comparison runs, besides its methods."""

LOCAL_FIELDS = names_with(Role.METHOD, OPTIONS, ("training", "model"))
"""Settings of a method that baselines have, too."""
METHOD_FIELDS = (*names_with(Role.METHOD, OPTIONS, ("mixing",)), *LOCAL_FIELDS)
"""Settings that a method may name: options of a peer that leave data, tokens and learning rate alike."""
COMMON_FIELDS = (*METHOD_FIELDS, *names_with(Role.COMPARISON, OPTIONS, ("model", "training", "data")))
"""Settings that a comparison may name for all of its methods."""

PEER_DEFAULTS: Mapping[str, Any] = {name: option.default for name, option in OPTIONS.items()}
"""Option of a peer -> its default, which also tells its type."""


@dataclass(frozen=True, slots=True)
class Method:
    """What is compared, read from one line of text.

    Args:
        regime: a baseline, or a topology as ``peer run`` takes it.
        settings: options of a peer that it sets.
    """

    regime: str
    settings: Mapping[str, Any]

    @staticmethod
    def parse(text: str) -> Method:
        """Read ``"TOPOLOGY [KEY=VALUE | FLAG] ..."``.

        Raises:
            LocalError: nothing there, an unknown or doubled key, a value of the wrong kind; says what would be valid.
        """
        regime, *words = text.split() or [""]
        if not regime or "=" in regime:
            raise LocalError(f"method {text!r} must begin with a topology or one of {', '.join(BASELINES)}")
        known = LOCAL_FIELDS if regime in BASELINES else METHOD_FIELDS
        return Method(regime, read_settings(words, known, f"method {text!r}"))

    def __str__(self) -> str:
        return " ".join([self.regime, *written_settings(self.settings)])


def read_settings(words: Sequence[str], known: Sequence[str], where: str) -> dict[str, Any]:
    """Read ``KEY=VALUE`` words into options of a peer, in the order of ``known``.

    Args:
        where: names the text in errors.

    Raises:
        LocalError: an unknown or doubled key, or a value of the wrong kind.
    """
    read: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = key.replace("-", "_")
        if key not in known:
            hint = did_you_mean(key, known)
            raise LocalError(f"{where}: unknown setting {key!r}.{hint} Known: {', '.join(known)}")
        if key in read:
            raise LocalError(f"{where}: {key} stands there twice")
        default = PEER_DEFAULTS[key]
        if not equals and not isinstance(default, bool):
            raise LocalError(f"{where}: write {key}=VALUE")
        read[key] = _value(key, value, default, where) if equals else True
    return {key: read[key] for key in known if key in read}


def _value(key: str, text: str, default: Any, where: str) -> Any:
    try:
        if isinstance(default, bool):
            return {"yes": True, "true": True, "no": False, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(text.split(","))
        return type(default)(text)
    except (ValueError, KeyError):
        words = {bool: "yes or no", int: "a whole number", float: "a number"}[type(default)]
        raise LocalError(f"{where}: {key} must be {words}, not {text!r}") from None


def written_settings(settings: Mapping[str, Any]) -> list[str]:
    """Inverse of ``read_settings``."""
    return [key if value is True else f"{key}={text_of(value)}" for key, value in settings.items()]


def text_of(value: Any) -> str:
    """Return a value as it is written in a setting."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
