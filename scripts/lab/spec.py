"""What a spec is: a frozen dataclass that says all that a result depends on, named by the hash of what it says.

Equal specs share one result, and a sweep that broke off finds by their names what it has finished. A grid is a TOML
file whose fields may be lists. It runs nothing and imports nothing heavy, so that a refusal comes at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from gossip.errors import LocalError
from scripts.lab.files import read_toml

SPECS_MAX = 100_000
"""Largest grid: a list too many multiplies quickly. Source: guess; more than a week of cells of ten seconds."""


LATER = "later"
"""In a field's metadata: it came after results had been kept, and at its default a spec means what it meant before.
Then it has no part in the name."""


class Spec(Protocol):
    """A frozen dataclass of numbers and texts: a cell, or a trial of a comparison."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def seed(self) -> int:
        """Root of everything random."""

    def name(self) -> str:
        """Return what its result is kept under: ``hashed_name``."""

    def title(self) -> str:
        """Return what tells it from the others of its sweep, in a few words."""

    def check(self) -> None:
        """Refuse what cannot run, with a ``LocalError``."""


AnySpec = TypeVar("AnySpec", bound=Spec)
"""One sort of spec."""


def hashed_name(spec: Spec, format: int, file_digests: Sequence[str]) -> str:
    """Return 16 hex digits: SHA-256 over the canonical JSON of the spec.

    Args:
        format: raised when equal specs begin to mean something else, so that old results are not taken for new ones.
        file_digests: of the files that the spec refers to, so that an edited file is another spec.
    """
    named = {"format": format, "files": file_digests, **dataclasses.asdict(spec)}
    for field in dataclasses.fields(spec):
        if field.metadata.get(LATER) and named[field.name] == field.default:
            del named[field.name]
    canonical = json.dumps(named, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'ring'?`` if one of the known names is near, or nothing."""
    near = get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


# -- grids


def read_grid(file: Path, default: AnySpec) -> list[AnySpec]:
    """Read a grid: every field of the spec may be one value or a list; ``seeds = 10`` means seeds 0..9.

    Several ``[[grid]]`` tables give the union of their products; what stands above them holds for all.

    Args:
        default: its fields hold where the file says nothing.

    Raises:
        LocalError: unreadable, not TOML, an unknown field, a bad value, or nothing in it.
    """
    content = read_toml(file, "sweep")
    tables = content.pop("grid", [{}])
    if not (isinstance(tables, list) and tables and all(isinstance(table, dict) for table in tables)):
        raise LocalError(f"{file}: write [[grid]] (in double brackets) for each part of the grid")
    try:
        specs = [spec for table in tables for spec in expand({**content, **table}, default)]
    except LocalError as error:
        raise LocalError(f"{file}: {error}") from error
    return list(dict.fromkeys(specs))


def expand(fields: Mapping[str, Any], default: AnySpec) -> list[AnySpec]:
    """Return every combination of the values given, the seeds varying fastest.

    Args:
        fields: name -> value or list of values; ``seeds`` is a number of them.
        default: its fields hold where nothing is given.

    Raises:
        LocalError: an unknown field, an empty list, a bad value, or more than ``SPECS_MAX`` specs.
    """
    known = [field.name for field in dataclasses.fields(default)]
    choices = {name: value if isinstance(value, list) else [value] for name, value in fields.items()}
    if "seeds" in choices:
        (count,) = choices.pop("seeds")
        if "seed" in choices or type(count) is not int or count < 1:
            raise LocalError(f"seeds is a whole number of at least 1, and excludes seed; got {count!r}")
        choices["seed"] = list(range(count))
    for name, values in choices.items():
        if name not in known:
            hint = did_you_mean(name, [*known, "seeds"])
            raise LocalError(f"unknown field {name!r}.{hint} Known: {', '.join(known)}, seeds")
        if not values:
            raise LocalError(f"{name} is an empty list")
    if (count := math.prod(len(values) for values in choices.values())) > SPECS_MAX:
        raise LocalError(f"the grid has {count} cells, at most {SPECS_MAX} are allowed")
    names = sorted(choices, key=lambda name: (name == "seed", known.index(name)))
    return [
        dataclasses.replace(default, **dict(zip(names, chosen, strict=True)))
        for chosen in itertools.product(*(choices[name] for name in names))
    ]
