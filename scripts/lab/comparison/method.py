"""A method of a comparison as one line of text: a topology or a baseline, then settings, checked word by word.

``"epidemic:3 codec=int8 batch_size=2"``: settings are options of a peer, so what a method can be is what a peer can be.
Only those that leave data and tokens alike may differ between methods; every method has its own tuned rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gossip.errors import LocalError
from peer.config import OPTIONS
from peer.options import Role, names_with
from scripts.lab.spec import did_you_mean


class Baseline(NamedTuple):
    """A regime without gossip.

    Attributes:
        budget: what it has in common with a method of peers, in two words, for tables.
        doc: one line.
        excluded: settings that it does not take, though others without gossip do.
        defaults: settings that it has if nothing is said.
    """

    budget: str
    doc: str
    excluded: tuple[str, ...] = ("optimizer",)
    defaults: Mapping[str, Any] = {}


BASELINES: Mapping[str, Baseline] = {
    "local": Baseline("alone", "each peer alone"),
    "central": Baseline(
        "equal tokens",
        "one adapter on as many tokens as all peers together, in steps of a peer's batch, every peer's text alike: "
        "what the strongest training in one place would give",
        ("optimizer", "local_steps"),
    ),
    "central-large": Baseline(
        "equal time", "one adapter, as many steps as a peer takes, each on a batch of every peer"
    ),
    "fedavg": Baseline(
        "server", "a server averages all adapters after every round, peers counting alike (arXiv 1602.05629)"
    ),
    # DiLoCo's Nesterov step with less momentum than its 0.9, which takes more rounds than ours to build up. Guess.
    "fedopt": Baseline(
        "server",
        "the same, and the server takes an outer step along the mean displacement (FedOpt, arXiv 2003.00295)",
        (),
        {"optimizer": "diloco:0.5:1"},
    ),
}
"""Regimes that every comparison runs, besides its methods."""
PEERS_BUDGET = "peers"
"""What the column ``budget`` says of methods of peers."""

LOCAL_FIELDS = names_with(Role.METHOD, OPTIONS, ("training", "model"))
"""Settings of a method that baselines have, too; and some have ``optimizer``."""
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
        return Method(regime, read_settings(words, _known(regime), f"method {text!r}"))

    @property
    def all_settings(self) -> dict[str, Any]:
        """Its settings, and those that its regime has if nothing is said."""
        return {**(BASELINES[self.regime].defaults if self.is_baseline else {}), **self.settings}

    @property
    def is_baseline(self) -> bool:
        """Without gossip."""
        return self.regime in BASELINES

    @property
    def is_central(self) -> bool:
        """One adapter learns from all text."""
        return self.regime in ("central", "central-large")

    @property
    def budget(self) -> str:
        """What it has in common with methods of peers, for tables."""
        return BASELINES[self.regime].budget if self.is_baseline else PEERS_BUDGET

    def __str__(self) -> str:
        return " ".join([self.regime, *written_settings(self.settings)])


def _known(regime: str) -> tuple[str, ...]:
    if regime not in BASELINES:
        return METHOD_FIELDS
    return tuple(name for name in ("optimizer", *LOCAL_FIELDS) if name not in BASELINES[regime].excluded)


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
