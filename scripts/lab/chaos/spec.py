"""What a chaos run is: a network of peers, and the faults that befall it; read from TOML, refused with the place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gossip.errors import LocalError
from gossip.fault_kinds import Clock, Kind
from gossip.faults import Fault, Injection, parse_faults, schedule
from scripts.lab.files import read_toml
from scripts.lab.spec import did_you_mean

Backend = Literal["auto", "namespaces", "proxies"]
"""What carries the packets; auto = namespaces where they can be had, else proxies."""
PEERS_MAX = 64
"""Source: as many as a testnet has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosSpec:
    """A network and its faults.

    Args:
        peers: how many; they are called p00, p01, ...
        seconds: faults and learning go on for so long after all peers are there.
        seed: of data, adapters, targets of faults and fates of packets.
        values: float32 values of an adapter.
        step_s: seconds that a local step takes; light peers wait, they do not compute.
        heterogeneity: how far the peers' optima lie apart, relative to the distance from the start.
        light: peers train in their own process (light_peer.py); otherwise each has a training process, as in life.
        patience_s: after ``seconds``, wait for so long at most until every peer that was started again has exchanged.
        reference: also run the same network without faults, to compare with.
        loss_times: so many times the held-out loss of that run the honest peers' may be; 0 = as ``judge.py`` says, and
            anything where members lie.
        options: more flags of every ``peer run``.
        faults: what befalls it; times count from the moment when all peers are there.
    """

    peers: int = 4
    seconds: float = 60.0
    seed: int = 0
    values: int = 64
    step_s: float = 0.25
    heterogeneity: float = 0.3
    light: bool = True
    patience_s: float = 60.0
    reference: bool = True
    loss_times: float = 0.0
    options: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        for holds, rule in (
            (2 <= self.peers <= PEERS_MAX, f"peers is 2 to {PEERS_MAX}"),
            (0 < self.seconds <= 86_400, "seconds is above 0, at most a day"),
            (self.values >= 1 and self.step_s >= 0, "values is at least 1, step_s at least 0"),
            (self.heterogeneity >= 0 and self.patience_s >= 0, "heterogeneity and patience_s are at least 0"),
            (self.loss_times >= 0, "loss_times is at least 0"),
        ):
            if not holds:
                raise LocalError(f"a chaos run needs: {rule}")
        for fault in self.faults:
            if isinstance(fault.kind, Clock):
                raise LocalError(
                    "a clock of its own is a fault of simulations: processes share the machine's clock"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The peers' names, sorted."""
        return tuple(f"p{index:02d}" for index in range(self.peers))

    def injections(self) -> list[Injection]:
        """Return all that befalls it, with its targets.

        Raises:
            LocalError: a fault names nobody of the run.
        """
        return schedule(self.faults, self.names, self.seed)

    def has(self, kind: type[Kind]) -> bool:
        """Whether a fault of that kind is in it."""
        return any(isinstance(fault.kind, kind) for fault in self.faults)

    def without_faults(self) -> ChaosSpec:
        """Return the same network, to which nothing happens."""
        return dataclasses.replace(self, faults=())

    def shortened(self, factor: float) -> ChaosSpec:
        """Return the same in a ``factor``-th of the time: faults come, last and pause for so much less."""
        if factor == 1:
            return self
        faults = tuple(
            dataclasses.replace(
                fault,
                at_s=fault.at_s / factor,
                every_s=fault.every_s / factor,
                until_s=fault.until_s / factor,
                for_s=fault.for_s / factor,
            )
            for fault in self.faults
        )
        return dataclasses.replace(self, seconds=self.seconds / factor, faults=faults)


def read_spec(file: Path) -> ChaosSpec:
    """Read a spec: a table ``[run]`` and any number of ``[[fault]]``.

    Raises:
        LocalError: unreadable, not TOML, an unknown key, or a bad value; names the place.
    """
    content = read_toml(file, "chaos spec")
    faults = parse_faults(content.pop("fault", []), str(file))
    run = content.pop("run", {})
    if content or not isinstance(run, dict):
        raise LocalError(
            f"{file}: only a table [run] and tables [[fault]] are known, not {', '.join(content)}"
        )
    known = {field.name: field.default for field in dataclasses.fields(ChaosSpec) if field.name != "faults"}
    for key, value in run.items():
        if key not in known:
            hint = did_you_mean(key, known)
            raise LocalError(f"{file}: [run] has the unknown key {key!r}.{hint} Known: {', '.join(known)}")
        run[key] = _value(file, key, value, known[key])
    try:
        spec = ChaosSpec(faults=faults, **run)
        spec.injections()
    except LocalError as error:
        raise LocalError(f"{file}: {error}") from error
    return spec


def _value(file: Path, key: str, value: object, default: object) -> object:
    if (
        isinstance(default, tuple)
        and isinstance(value, list)
        and all(isinstance(word, str) for word in value)
    ):
        return tuple(value)
    if type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    wanted = "a list of texts" if isinstance(default, tuple) else f"of type {type(default).__name__}"
    raise LocalError(f"{file}: [run] {key} is {wanted}, not {value!r}")
