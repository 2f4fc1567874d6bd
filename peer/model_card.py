"""The model card: README.md beside an exported adapter, for whoever comes upon it later.

It says what the adapter is, how it came about, how to load it, what it may give away and what an audit has found. It
names no peer, no file of data and no place on this machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import trio

from peer.audit_event import Audited
from peer.checkpoints import HomeError
from peer.durable import told, write_atomically
from peer.prepared_run import PreparedRun

CARD = "README.md"
"""Its name, where model hubs look for it."""

TEXT = """\
---
{head}
---

# An adapter trained together

{kind} for {base} ({task}), made with gossip-peer: {rounds} rounds, in which peers train on text that does not leave
their machines and exchange adapters, without a server.

The run's fingerprint is `{run}`. This card speaks of the file `{weights}` with the SHA-256 `{digest}`.

## Loading it

{loading}

## What it may give away

Adapters can reveal what they were trained on (whole sentences, and whether a text was among them) to everybody who has
them.

{found}"""
NOT_AUDITED = """\
This one has not been audited. `peer audit` measures how well an adapter tells the rows that it was trained on from
others.
"""
AUDITED = """\
One participant has measured, on rows of its own, how well adapters of this run tell the rows that it trained on from
rows that it held out. 50 of 100 pairs is guessing; in brackets, 95 % intervals.

| adapter | told apart, of 100 pairs | found at 1 % false alarms | at 5 % | canaries, bits (unseen ones; at most) |
| --- | --- | --- | --- | --- |
"""
LOADING = {
    True: "With `peft.PeftModel.from_pretrained(BASE, FOLDER)`, or `peer chat --adapter FOLDER`.",
    False: "With `from_pretrained(FOLDER)` of transformers, or `peer chat --adapter FOLDER`.",
}
"""Whether it is an adapter, or else a whole model -> how to load it."""
MEANING = """
`finished` is the adapter in this folder, `mixed` and `own` are that participant's before the final merge and before its
last mixing, `received` what neighbors had sent it. Equal ones stand here once. An attack that finds little proves
little: a better one may find more.
"""


def card(run: PreparedRun, rounds: int, weights_digest: str, audits: Sequence[Audited]) -> str:
    """Return the text of the card.

    Args:
        run: what was taken part in.
        rounds: rounds completed.
        weights_digest: SHA-256 of the file of weights, hex: what the card speaks of.
        audits: what an audit has found; empty if there was none.
    """
    model, export = run.plan.config.model, run.ready.export
    is_adapter = "adapter_config.json" in export.files
    head = {
        "base_model": run.ready.model_name,
        "library_name": "peft" if is_adapter else "transformers",
        "tags": ["gossip-peer"],
    }
    return TEXT.format(
        head="\n".join(f"{name}: {json.dumps(value)}" for name, value in head.items()),
        kind=f"A {model.adapter} adapter" if is_adapter else "All weights",
        base=run.ready.model_name,
        task=model.task,
        rounds=rounds,
        run=run.manifest.fingerprint.hex(),
        weights=export.weights,
        digest=weights_digest,
        loading=LOADING[is_adapter],
        found=AUDITED + "\n".join(map(_row, audits)) + "\n" + MEANING if audits else NOT_AUDITED,
    )


async def write_card(run: PreparedRun, rounds: int, audits: Sequence[Audited]) -> None:
    """Write the card beside the adapter that has been exported; nothing where none has.

    Raises:
        HomeError: the disk refused.
    """
    await trio.to_thread.run_sync(_write, run, rounds, audits)


def _write(run: PreparedRun, rounds: int, audits: Sequence[Audited]) -> None:
    folder = run.home.adapter
    weights = folder / run.ready.export.weights
    if not weights.is_file():
        return
    run.home.check()
    try:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        write_atomically(folder / CARD, card(run, rounds, digest, audits).encode())
    except OSError as error:
        raise HomeError(f"cannot write {folder / CARD}: {told(error)}") from error


def _row(audit: Audited) -> str:
    low, high = audit.auc_interval
    planted = "none planted"
    if audit.exposure_mean is not None:
        planted = f"{audit.exposure_mean:.1f} ({audit.exposure_chance:.1f}; {audit.exposure_limit:.1f})"
    return (
        f"| {audit.adapter.partition(' from ')[0]} | {100 * audit.auc:.0f} ({100 * low:.0f} to {100 * high:.0f}) | "
        f"{_found(audit, 0.01)} | {_found(audit, 0.05)} | {planted} |"
    )


def _found(audit: Audited, rate: float) -> str:
    """Return the share of rows found at a rate of false alarms that so many rows can show."""
    if audit.held_out * rate < 1:
        return "too few rows"
    share, (low, high) = (
        (audit.tpr_1, audit.tpr_1_interval) if rate == 0.01 else (audit.tpr_5, audit.tpr_5_interval)
    )
    return f"{share:.0%} ({low:.0%} to {high:.0%})"
