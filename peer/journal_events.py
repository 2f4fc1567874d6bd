"""What a peer tells its user: one class per event, from which its JSON line, its sentence and its documentation follow.

An event's fields are the fields of its JSON object (``peer/journal_lines.py``), in this order; the text under a field
is its documentation (docs/events.md, written by ``peer/journal_page.py``); ``sentence`` is what a person reads. Who
reads events is said in ``peer/journal.py``.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from peer.audit_event import Audited
from peer.joining_event import JoinedLate
from peer.journal_words import STAGES, loss_in_words, megabytes, what_travels
from peer.left_out_event import LeftOut
from peer.odd_neighbors import odd_neighbors
from peer.rate_event import RateChosen
from peer.rollouts_event import RolloutsShared


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The peer has begun; it has opened its home folder, nothing else."""

    kind: ClassVar[str] = "start"
    is_transient: ClassVar[bool] = False

    name: str
    """Its display name."""
    peer_id: str
    """Its identity, base58."""
    home: Path
    """Folder of identity, checkpoints and journal."""

    def sentence(self) -> str | None:
        """Return who we are."""
        return f"peer {self.name} ({self.peer_id}), home {self.home}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparing:
    """The training process is loading; many a second."""

    kind: ClassVar[str] = "preparing"
    is_transient: ClassVar[bool] = True

    stage: str
    """What it does: import, wait, download, verify, convert, save, load or rate (a trial of learning rates)."""
    done: float | None
    """How much of it is done, 0 to 1; null where that is not known."""

    def sentence(self) -> str | None:
        """Return the beginning of a stage only: shares of it come many times a second."""
        return None if self.done else f"{STAGES.get(self.stage, self.stage)} ..."


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReady:
    """Model, data and adapter are ready for training."""

    kind: ClassVar[str] = "ready"
    is_transient: ClassVar[bool] = False

    model: str
    """The base model, as people name it."""
    dtype: str
    """Precision of its weights."""
    device: str
    """Where it runs: cpu, cuda or mps."""
    base_parameters: int
    """Parameters of the frozen base model."""
    adapter: str
    """Kind of adapter."""
    adapter_values: int
    """Numbers in the adapter."""
    data_report: str
    """What was read of the data, with a sample: text to print."""
    rows: int
    """Rows to learn from; 0 = questions without end, as an agent has them."""
    rows_held_out: int
    """Rows kept for measuring."""
    sequences: int
    """Sequences to learn from."""
    seconds: float
    """How long all this took."""

    def sentence(self) -> str | None:
        """Return model, data and counts, one line each (the data's report may have several)."""
        if self.rows:
            given = f"{self.rows + self.rows_held_out} rows: {self.rows} to learn from ({self.sequences} sequences), "
        else:
            given = "questions without end, "
        return (
            f"base model {self.model} ({self.dtype}, {self.base_parameters / 1e6:.1f} M parameters, on {self.device}), "
            f"{self.adapter} adapter of {self.adapter_values:,} values\n"
            f"{self.data_report}\n"
            f"{given}{self.rows_held_out} held out"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """The peer goes on from a checkpoint."""

    kind: ClassVar[str] = "resumed"
    is_transient: ClassVar[bool] = False

    round: int
    """Rounds completed when it was written."""
    checkpoint: Path
    """Its folder."""

    def sentence(self) -> str | None:
        """Return where we go on."""
        return f"resumed at round {self.round} from {self.checkpoint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Others can reach the peer."""

    kind: ClassVar[str] = "listening"
    is_transient: ClassVar[bool] = False

    addresses: tuple[str, ...]
    """Full addresses under which others reach it."""
    join: str
    """The command a friend pastes to join."""

    def sentence(self) -> str | None:
        """Return the addresses, what taking part reveals, and the command for a friend."""
        is_open = "--open" in self.join.split()
        who = (
            "This group is open: whoever knows" if is_open else "Send it as you would a password: whoever has"
        )
        return "\n".join(
            [
                "listening on " + ", ".join(self.addresses),
                f"Your text stays on this machine. What travels are {what_travels(self.join)}; to those who read them "
                "they can",
                "reveal training text, so run with people you would trust with it.",
                "A friend joins with:",
                f"    {self.join}",
                f"{who} {'an address' if is_open else 'this line'} can enter.",
            ]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Anything else a user should know: peers up and down, refusals, damaged checkpoints."""

    kind: ClassVar[str] = "note"
    is_transient: ClassVar[bool] = False

    text: str
    """The text, of one line or more."""

    def sentence(self) -> str | None:
        """Return the text itself."""
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTaken:
    """An optimizer step has been taken; at most two a second are told."""

    kind: ClassVar[str] = "step"
    is_transient: ClassVar[bool] = True

    round: int
    """The round, from 0."""
    step: int
    """Number of the step within the round, from 1."""
    steps: int
    """Steps of the round."""
    loss: float
    """Mean loss of the step."""

    def sentence(self) -> str | None:
        """Steps are for live views; they are no sentence."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundDone:
    """A round is complete. Bytes and fetches are counted from the start of the process."""

    kind: ClassVar[str] = "round"
    is_transient: ClassVar[bool] = False

    round: int
    """The round, from 0."""
    rounds: int
    """All rounds, with those of the final merge."""
    merging: bool
    """Whether it is a round of the final merge, in which nobody trains."""
    loss: float
    """Mean training loss; null when merging, and where no local step was taken."""
    age: int
    """Local steps that went into our adapter."""
    mixed: tuple[str, ...]
    """Names of the peers whose adapters were mixed in."""
    mixed_rounds: tuple[int, ...]
    """The round of each of these adapters."""
    failed: tuple[tuple[str, str], ...]
    """Pairs of name and reason: neighbors whose adapters did not come."""
    objections: tuple[tuple[str, str], ...]
    """Pairs of name and reason: adapters dropped or clipped; "trimmed" and "clipped to row" alone mean nothing bad."""
    neighbors: tuple[str, ...]
    """Names of the peers whose adapters came; the following six are theirs, in the same order."""
    distances: tuple[float, ...]
    """How far each of these adapters was from ours; null if its values were not finite."""
    distance_ratios: tuple[float, ...]
    """The same relative to the lower median of the row."""
    cosines: tuple[float, ...]
    """Cosine of what it has learned since the common beginning with what we have, estimated; null if unknown."""
    drifts: tuple[float, ...]
    """How far it was from that peer's last adapter that came, estimated; null at first."""
    trimmed: tuple[tuple[int, int], ...]
    """Pairs of in how many rounds `--robust` left it out, and in how many it came, since the start of the process."""
    objected: tuple[int, ...]
    """In how many of these rounds a guard objected to it."""
    measurements: int
    """How many times a mix was measured on our own held-out rows before one was kept."""
    drift: float
    """How far mixing moved us, relative to the norm of our adapter."""
    cross_term: float
    """What averaging LoRA's factors loses against averaging their products, relative; null without factors."""
    collect_s: float
    """Seconds from publishing to mixing."""
    deadline_s: float
    """Seconds that we would have waited at most."""
    peers: int
    """Other peers that are up."""
    bytes_in: int
    """Bytes received."""
    bytes_out: int
    """Bytes sent."""
    mask_bytes: int
    """Bytes of both that masks cost: keys shown with pulls, questions and answers about masks."""
    fetches_ok: int
    """Fetches that brought an adapter."""
    fetches_failed: int
    """Fetches that failed."""
    rejected: Mapping[str, int]
    """Reason -> how often something that came was refused for it."""
    saved: bool
    """Whether its checkpoint is complete: then it survives kill -9 and power loss; if not, it was not its turn
    (--checkpoint-every), or a note said why."""
    shares_weights: bool
    """Whether adapters are shared; with `--share rollouts` none are, and none are mixed."""

    def sentence(self) -> str | None:
        """Return the round in one line."""
        mixed = f", mixed with {', '.join(self.mixed) or 'nobody'}" if self.shares_weights else ""
        missing = "".join(f"; {peer} {reason}" for peer, reason in self.failed)
        odd = odd_neighbors(self.neighbors, self.distance_ratios, self.trimmed)
        trained = "not trained" if math.isnan(self.loss) else f"training loss {loss_in_words(self.loss)}"
        work = "final merge" if self.merging else trained
        return (
            f"round {self.round + 1}/{self.rounds}: {work}{mixed}{missing}{odd} "
            f"({self.collect_s:.1f} s), in {megabytes(self.bytes_in)}, out {megabytes(self.bytes_out)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The adapter has been measured on held-out rows."""

    kind: ClassVar[str] = "eval"
    is_transient: ClassVar[bool] = False

    round: int
    """Rounds completed."""
    own: float
    """Loss on our own held-out rows."""
    all: float | None
    """Mean of the losses of our own rows and of each file of `--eval-data`; null without such files."""
    per_file: Mapping[str, float]
    """Path of each such file -> its loss."""
    accuracy: float | None
    """Share of our own held-out texts that were given the right label; null but for a classification."""
    accuracy_all: float | None
    """The same over all files; null but for a classification, and without `--eval-data`."""

    def sentence(self) -> str | None:
        """Return the losses, and how many labels are right if there are labels."""
        whole = f", over all files {loss_in_words(self.all)}" if self.all is not None else ""
        right = f"; right {self.accuracy:.1%}" if self.accuracy is not None else ""
        if right and self.accuracy_all is not None:
            right += f", over all files {self.accuracy_all:.1%}"
        return f"after round {self.round}: held-out loss {loss_in_words(self.own)}{whole}{right}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Personalized:
    """With `--personalize`, at the end: the mix of our own and the common adapter that does best has been kept."""

    kind: ClassVar[str] = "personal"
    is_transient: ClassVar[bool] = False

    own_share: float
    """Share of our own adapter in the best mix, 0 to 1; the rest is the common one."""
    loss: float
    """Loss of the best mix on our held-out rows."""
    common_loss: float
    """Loss of the common adapter alone."""
    own_loss: float
    """Loss of our own adapter alone."""
    adapter: Path
    """Folder of the best mix."""

    def sentence(self) -> str | None:
        """Return the best mix and what it was compared with."""
        return (
            f"on our own held-out rows {100 * self.own_share:.0f} % of our own adapter and the rest of the common one "
            f"does best: loss {loss_in_words(self.loss)} (common alone {loss_in_words(self.common_loss)}, own alone "
            f"{loss_in_words(self.own_loss)}); it is in {self.adapter}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last event of a run that was not broken off."""

    kind: ClassVar[str] = "finished"
    is_transient: ClassVar[bool] = False

    complete: bool
    """Whether all rounds are done."""
    round: int
    """Rounds completed."""
    adapter: Path
    """Folder of the adapter."""
    load: str | None
    """One line of Python that loads it in plain peft or transformers; null if nothing has been learned."""
    refused: Mapping[str, int]
    """Reason -> how often a connection was not let in or was cut off, or its peer broke a rule."""

    def sentence(self) -> str | None:
        """Return how far we came, whom we refused, and how to load the adapter."""
        done = f"all {self.round} rounds are done" if self.complete else f"stopped after {self.round} rounds"
        if self.refused:
            done += f" (connections refused: {', '.join(f'{n} x {why}' for why, n in self.refused.items())})"
        if self.load is None:
            return f"{done}; nothing has been learned yet"
        return f"{done}; the adapter is {self.adapter}. Load it in plain peft with\n    {self.load}"


JournalEvent = (
    Started
    | Preparing
    | ModelReady
    | RateChosen
    | Resumed
    | Listening
    | Note
    | JoinedLate
    | StepTaken
    | RoundDone
    | RolloutsShared
    | LeftOut
    | Measured
    | Personalized
    | Audited
    | Finished
)
"""``kind`` is its name in JSON; transient events are for live views and are not kept in the file."""

EVENTS: Mapping[str, type[JournalEvent]] = {event.kind: event for event in typing.get_args(JournalEvent)}
"""Name in JSON -> event, in the order in which a run tells them first."""
