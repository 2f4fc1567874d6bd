"""The one kind of error of this package.

It knows nothing of exit codes: the command line turns it into a refusal with the message as it stands, so every
message names the thing, the value, and what would be valid.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TopologyError(ValueError):
    """A topology, weight rule or matrix that cannot be what the user asked for; the message says what would be."""


def unknown(kind: str, given: str, known: Iterable[str]) -> TopologyError:
    """Return the error for a name that is in no catalogue: lists the known ones and the nearest of them."""
    names = sorted(known)
    near = difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return TopologyError(f"unknown {kind} {given!r}.{hint} Known: {', '.join(names)}")
