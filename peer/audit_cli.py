# ruff: noqa: T201 - printing is what a command line is for
"""``peer audit``: what adapters give away of the rows that they were trained on; light until it runs."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from gossip.errors import LocalError

if TYPE_CHECKING:
    from peer.training.audit import Attribution, Audit, Outcome
    from peer.training.leakage import Exposure, Figures, Membership, Share


Adapters = Annotated[
    tuple[Path, ...], Parameter(help="Folders of adapters on one base model, e.g. HOME/adapter.")
]
Data = Annotated[
    tuple[Path, ...],
    Parameter(
        help="Rows that were trained on; with several adapters one file for all, or one for each, in order."
    ),
]
Against = Annotated[
    tuple[Path, ...],
    Parameter(help="Rows like them that were not trained on; default: what the run held out of --data."),
]
CanaryFile = Annotated[
    Path | None, Parameter(help="Canaries that a run has planted: canaries.jsonl in its home folder.")
]
AnswersOnly = Annotated[bool, Parameter(negative=(), help="Only the last answers of chats were learned.")]
Private = Annotated[bool, Parameter(negative=(), help="The run was with --dp-epsilon.")]
Rows = Annotated[int, Parameter(help="Look at so many rows of each kind and file, drawn by the seed.")]
Json = Annotated[bool, Parameter(negative=(), help="Print one JSON object and nothing else.")]


def audit(
    *,
    adapter: Adapters,
    data: Data = (),
    against: Against = (),
    canary_file: CanaryFile = None,
    held_out: Annotated[float, Parameter(help="Share of the rows that the run held out.")] = 0.1,
    seed: Annotated[int, Parameter(help="Seed of the run.")] = 0,
    max_length: Annotated[int, Parameter(help="Tokens per sequence, as in the run.")] = 64,
    answers_only: AnswersOnly = False,
    private: Private = False,
    rows: Rows = 1000,
    references: Annotated[int, Parameter(help="Compare canaries with so many rows like them.")] = 1023,
    json: Json = False,
) -> None:
    """Measure how well an adapter tells the rows that it was trained on from others (docs/audit.md).

    With several adapters and a file for each also: whose row is it?
    """
    from peer.training.audit import Request
    from peer.training.audit import audit as audited

    if not 0 < held_out < 1:
        raise LocalError(f"--held-out must lie between 0 and 1 (both excluded), not {held_out!r}")
    for name, value in (("--max-length", max_length), ("--rows", rows), ("--references", references)):
        if value < 1:
            raise LocalError(f"{name} must be at least 1, not {value!r}")
    found = audited(
        Request(
            adapters=adapter,
            data=data,
            against=against,
            canary_file=canary_file,
            held_out=held_out,
            seed=seed,
            max_length=max_length,
            answers_only=answers_only,
            private=private,
            rows_max=rows,
            references_max=references,
        )
    )
    if json:
        print(json_text.dumps(_fields(found)))
    else:
        print("\n".join(_lines(found)))


def _fields(value: Any) -> Any:
    """Return named tuples as objects, as JSON has them."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _fields(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): _fields(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_fields(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _lines(found: Audit) -> Iterator[str]:
    for outcome in found.outcomes:
        yield from _outcome(outcome)
    if found.attribution is not None:
        yield from _attribution(found.attribution)
    yield "What the figures mean, and what they do not: docs/audit.md. An attack that finds nothing proves nothing."


def _outcome(outcome: Outcome) -> Iterator[str]:
    yield f"{outcome.adapter}:"
    if outcome.figures is not None:
        yield from _figures(outcome.figures)
    if outcome.exposure is not None:
        yield _exposure(outcome.exposure)


def _figures(figures: Figures) -> Iterator[str]:
    membership = figures.membership
    yield f"  {membership.members} rows that it may have learned, {membership.others} that it has not"
    yield f"  tells your rows from others' in {_pairs(membership)}; 50 = guessing"
    for rate, share in membership.true_positives.items():
        few = "; too few rows for this" if membership.is_too_few_for(rate) else ""
        yield f"  finds {_share(share)} of your rows while taking {rate:.0%} of the others for yours{few}"
    if figures.calibrated is not None:
        yield f"  without a look at the base model: {_pairs(figures.plain)}"
    blind = figures.blind
    if blind is not None and not blind.auc.low <= 0.5 <= blind.auc.high:
        yield (
            f"  beware: the base model, which has seen neither, tells them apart in {_pairs(blind)}: the two kinds of "
            "rows differ in subject or style, and so the figures above say less of membership. Give --against rows of "
            "the same source."
        )


def _exposure(exposure: Exposure) -> str:
    return (
        f"  {exposure.planted} canaries among {exposure.references} rows like them stand out by "
        f"{exposure.mean:.1f} bits in the mean (unseen: {exposure.chance_mean:.1f}), the plainest by "
        f"{exposure.highest:.1f} (unseen: {exposure.chance_highest:.1f}); at most {exposure.limit:.1f} could be seen"
    )


def _attribution(attribution: Attribution) -> Iterator[str]:
    yield f"whose row is it, of {attribution.owners} (guessing: {1 / attribution.owners:.0%}):"
    yield f"  right for {_share(attribution.learned)} of the rows that were learned"
    yield f"  right for {_share(attribution.held_out)} of the rows that were not: by style and subject alone"


def _pairs(membership: Membership) -> str:
    auc = membership.auc
    return f"{100 * auc.value:.0f} of 100 pairs ({100 * auc.low:.0f} to {100 * auc.high:.0f})"


def _share(share: Share) -> str:
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"
