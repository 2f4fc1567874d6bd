"""The catalogue of environments, and environments of the user's own. What an environment is, ``environment.py`` says.

A user's own is a class on this machine, named ``module:Class`` by the local configuration alone; nothing that a peer
sends names code.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence

from gossip.errors import LocalError
from gossip.rollouts import ANSWER_BYTES_MAX
from peer.training.agent.environment import Environment
from peer.training.agent.games import GAMES
from peer.training.agent.strings import STRINGS


def environments_of(tasks: Sequence[str]) -> dict[str, Environment]:
    """Return environments by name, in the order given.

    Args:
        tasks: names of the catalogue or places ``module:Class``, one or several in each, separated by commas.

    Raises:
        LocalError: there is no such environment, or it lacks something.
    """
    names = [name.strip() for text in tasks for name in text.split(",")]
    found = [_own(name) if ":" in name else _known(name) for name in names]
    by_name = {environment.name: environment for environment in found}
    if len(by_name) < len(found):
        raise LocalError(f"--tasks {', '.join(names)} names an environment twice: name each once")
    return by_name


def _known(name: str) -> Environment:
    if name not in ENVIRONMENTS:
        raise LocalError(
            f"unknown task {name!r}; known: {', '.join(ENVIRONMENTS)}, or a class of your own as module:Class"
        )
    return ENVIRONMENTS[name]


def _own(place: str) -> Environment:
    """Return the environment that a class of the user makes, called without arguments.

    It has ``prompt(index) -> str`` and ``check(index, answer) -> bool``, and may have ``reply``, ``name``, ``version``
    and ``turn_bytes``; see ``Environment``.
    """
    try:
        made = pkgutil.resolve_name(place)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise LocalError(f"--tasks {place}: there is no class without arguments there: {error}") from error
    lacking = [name for name in ("prompt", "check") if not callable(getattr(made, name, None))]
    if lacking:
        raise LocalError(f"--tasks {place}: the class has no {' and no '.join(lacking)}; see docs/agents.md")
    return Environment(
        name=str(getattr(made, "name", place.rpartition(":")[2].lower())),
        version=int(getattr(made, "version", 1)),
        doc=(type(made).__doc__ or "of the user's own").splitlines()[0],
        turn_bytes=int(getattr(made, "turn_bytes", ANSWER_BYTES_MAX)),
        prompt=made.prompt,
        check=made.check,
        reply=getattr(made, "reply", None),
    )


ENVIRONMENTS: Mapping[str, Environment] = {
    environment.name: environment for environment in (*STRINGS, *GAMES)
}
"""Environments by name. To add one: a value in ``strings.py``, ``games.py`` or a file of its own, and a line here."""
