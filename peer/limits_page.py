"""docs/limits.md, written from the limits' own declarations: ``python -m peer.limits_page > docs/limits.md``.

A limit stands where it is kept to, as a constant in capitals or a field of ``Limits``, with the text under it as its
reason. A test compares the page with what this file writes.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import ModuleType

from peer.network.limits import DEFAULT_LIMITS

INTRODUCTION = """\
# Limits

What a peer keeps to, whoever asks for more. Seconds where a name ends in `_s` or `_S`, bytes where it says so. Rates
are token buckets: so many a second, so many at once. `--connections-max` is an option; to change another one, change
the source.

Sources called `ux-reliability` and `libp2p.md` are the notes of studies and measurements that the project began with.
This page is written from the files that it names by `python -m peer.limits_page > docs/limits.md`.
"""

PLACES: Mapping[str, str] = {
    "peer.network.limits": "Connections, streams, rates",
    "peer.network.addresses": "Resolving names",
    "peer.network.gossipsub": "Relaying announcements",
    "peer.network.libp2p_rpc": "What one announcement stream may bring",
    "gossip.membership_limits": "Who takes part: tables, dials, strikes",
    "gossip.wire": "Control messages",
    "gossip.claims": "Signed claims",
    "gossip.rollouts": "Rollouts",
    "peer.exchange": "Reading adapters",
    "peer.publisher": "Serving adapters",
    "gossip.masked_sums": "Sums under masks",
    "gossip.fixed_point": "Numbers under masks",
    "gossip.methods.reach": "How far a neighbor's adapter may lie",
    "gossip.catching_up": "Coming late to a run",
    "gossip.health": "Testing a mix on own held-out rows",
    "peer.saving": "Checkpoints on a disk that refuses",
    "peer.journal_file": "The journal's file",
    "peer.privacy.ledger": "The ledger of privacy",
    "peer.privacy.accounting": "Counting privacy",
}
"""Module -> what its limits are about."""


def page() -> str:
    """Return the text of docs/limits.md."""
    return "\n".join([INTRODUCTION, *(_section(name, title) for name, title in PLACES.items())])


def _section(name: str, title: str) -> str:
    module = importlib.import_module(name)
    rows = [f"| `{limit}` | {value} | {reason} |" for limit, value, reason in _limits_of(module)]
    place = name.replace(".", "/")
    return "\n".join(
        [f"## {title} (`{place}.py`)", "", "| limit | value | why |", "| --- | ---: | --- |", *rows, ""]
    )


def _limits_of(module: ModuleType) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and reason of every limit of a module that says its reason."""
    assert module.__file__, "a module of ours has a file"
    body = ast.parse(Path(module.__file__).read_text()).body
    holder: object = module
    if module.__name__ == type(DEFAULT_LIMITS).__module__:
        holder = DEFAULT_LIMITS
        (declaration,) = (node for node in body if isinstance(node, ast.ClassDef))
        body = declaration.body
    for node, following in pairwise(body):
        names = [name for name in _assigned(node) if name.isupper() or holder is DEFAULT_LIMITS]
        reason = _text(following)
        values = [getattr(holder, name) for name in names]
        if names and reason and all(isinstance(value, int | float) for value in values):
            yield ", ".join(names), ", ".join(f"{value:,}" for value in values), reason


def _assigned(node: ast.stmt) -> list[str]:
    match node:
        case ast.Assign(targets=[target]):
            named = target.elts if isinstance(target, ast.Tuple) else [target]
        case ast.AnnAssign(target=target):
            named = [target]
        case _:
            named = []
    return [name.id for name in named if isinstance(name, ast.Name) and not name.id.startswith("_")]


def _text(node: ast.stmt) -> str:
    """Return a text that stands alone, on one line; empty if it is none."""
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return " ".join(text.split()).replace("``", "`").replace("|", "\\|")
        case _:
            return ""


if __name__ == "__main__":
    sys.stdout.write(page())
