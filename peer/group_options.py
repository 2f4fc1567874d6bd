"""Options of the run and of a peer's dealings with others: sections of ``config.py``, for the network process.

What an option's marks mean is said in ``options.py``. Every default says where it comes from: a reference, our bench or
"guess".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from peer.options import (
    AT_LEAST_8,
    EVERYDAY,
    NOT_NEGATIVE,
    OPEN_SHARE,
    POSITIVE,
    SHARE,
    Role,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The run as a whole, and where it is kept."""

    seed: Annotated[int, NOT_NEGATIVE, Role.RUN | Role.MODEL, EVERYDAY] = 0
    """Seed of the run: initial adapter and shared random topologies. All peers of a run need the same one."""
    rounds: Annotated[int, POSITIVE, Role.RUN, EVERYDAY] = 10
    """Rounds to run; a round is local steps, then one exchange."""
    home: Annotated[Path | None, Role.OWN, EVERYDAY] = None
    """Where identity and checkpoints live; default: gossip-peer in the user's state folder."""
    keep_checkpoints: Annotated[int, NOT_NEGATIVE, Role.OWN] = 0
    """Complete checkpoints kept; 0 = 2, and 1 of a whole model. Source: one may be found corrupt; whole models are
    large, and the group has them."""
    checkpoint_every: Annotated[int, POSITIVE, Role.OWN] = 1
    """Save each so many rounds, and after the last local steps; a crash loses at most so many rounds. Source: ours; a
    whole model with its optimizer takes 12 bytes a parameter to write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixingOptions:
    """Who reads whom, what travels, and how it is mixed."""

    share: Annotated[Literal["weights", "rollouts", "both"], Role.RUN | Role.METHOD, EVERYDAY] = "weights"
    """What peers read of one another: weights (adapters), rollouts (answers to tasks, for trainers that learn from
    them), or both. Source: what every run but one of agents needs."""
    topology: Annotated[str, Role.RUN, EVERYDAY] = "epidemic:4"
    """Who reads whom. Source: Epidemic Learning (NeurIPS 2023), s = ceil(log2 n) for up to 16; rows of four are the
    shortest in which a robust rule bears a liar (docs/robustness.md)."""
    weights: Annotated[str, Role.RUN | Role.METHOD] = "metropolis-hastings"
    """Weights of static graphs. Source: need only the neighbors' degrees and keep the mean; topology/weights.py."""
    roster: Annotated[tuple[str, ...], Role.RUN] = ()
    """Peer ids of a fixed group: owners of a matrix file's rows (in sorted order) where the file names none."""
    factors: Annotated[str, Role.RUN | Role.METHOD] = "both"
    """Which of LoRA's factors are trained, travel and are mixed: both, ffa, alternate[:T], share-a, r-only, tsvd.
    Source: Dec-LoRA (arXiv 2501.15361); with tuned learning rates none is clearly better (docs/results.md)."""
    mixing: Annotated[str, Role.RUN | Role.METHOD] = "average"
    """How a row of adapters is combined: average, age, staleness[:A], push-sum, symmetric-drop. Source: D-PSGD."""
    optimizer: Annotated[str, Role.RUN | Role.METHOD] = "none"
    """What a round does around the mixing: none, qg, d2, k-gt, noloco, diloco, fedexp, fedadam.
    Source: docs/results.md."""
    codec: Annotated[str, Role.RUN | Role.METHOD, EVERYDAY] = "float32"
    """How adapters travel: float32, bfloat16, int8, int4, sign, topk[:F], randomk[:F], chunked[:K[:BITS]],
    lowrank[:R]."""
    feedback: Annotated[str, Role.RUN | Role.METHOD] = "auto"
    """What is remembered of what a codec lost: none, error (DeepSqueeze), replica (CHOCO); pseudo-gradient[:BETA]
    sends what rounds have changed (SparseLoCo); auto = what fits the codec."""
    gamma: Annotated[float, SHARE, Role.RUN | Role.METHOD] = 0.0
    """Mixing step size, above 0 to 1; 0 = the codec's own, 1 from 8 bits on. Source: our bench."""
    budget_mb: Annotated[float, NOT_NEGATIVE, Role.RUN] = 0.0
    """Megabytes to read per round at most: chooses the most exact codec within it; 0 = no limit, --codec counts."""
    merge: Annotated[
        Literal["clipped", "product", "average", "trimmed", "median", "none"], Role.RUN | Role.METHOD
    ] = "clipped"
    """How adapters become one after the last round; clipped, trimmed and median bound what liars can do to it.
    Source: docs/robustness.md; an ICLR 2026 result for gossip."""
    average_last: Annotated[int, NOT_NEGATIVE, Role.BOUNDED | Role.METHOD] = 0
    """What goes into the final merge, and is kept, is the mean of our adapter over the last so many rounds; 0 = the
    last one. Source: latest weight averaging (arXiv 2209.14981); in our trials 2 or 3 gained 1 % of what is learned
    with small batches at a constant rate, and nothing where the rate falls."""
    overlap: Annotated[bool, Role.RUN | Role.METHOD] = False
    """Read neighbors while the next local steps run: hides the network, mixes adapters one round of steps old."""
    fragments: Annotated[int, POSITIVE, Role.RUN | Role.METHOD] = 1
    """Parts of the adapter that take turns: a round carries one, a like share of the bytes; 1 = all in every round.
    Source: Streaming DiLoCo (arXiv 2501.18512)."""
    personalize: Annotated[bool, Role.OWN, EVERYDAY] = False
    """Also keep the mix of our own and the common adapter that does best on our held-out rows, in HOME/personal."""
    collect_s: Annotated[float, NOT_NEGATIVE, Role.BOUNDED | Role.METHOD, EVERYDAY] = 60.0
    """Longest wait for neighbors, seconds; 0 = asynchronous. The actual deadline follows arrivals seen. Guess."""
    norm_cap: Annotated[float, POSITIVE, Role.BOUNDED | Role.METHOD] = 10.0
    """A neighbor farther from us than this many times our own norm is clipped to it. Source: guess."""
    robust: Annotated[str, Role.BOUNDED | Role.METHOD, EVERYDAY] = "auto"
    """What bounds the harm of lying neighbors in a row: none, clip, trim-clip[:B], nna[:B], trimmed[:B], median,
    geometric-median, krum[:B]; auto = trim-clip where a row reads at least 4. Source: docs/robustness.md."""
    step_cap: Annotated[float, POSITIVE, Role.BOUNDED | Role.METHOD] = 5.0
    """A neighbor farther from us than this many rounds of local steps (or usual distances of neighbors, if those are
    longer) is clipped to that. Source: our simulations, in which 3 clips 1 honest adapter in 500, and 5 none."""
    check_rows: Annotated[int, NOT_NEGATIVE, Role.BOUNDED] = 4
    """Own held-out sequences on which a mix is measured before it is kept; 0 = never. Source: ours; in the demo one
    measurement costs a sixth of a round."""
    check_every: Annotated[int, POSITIVE, Role.BOUNDED] = 10
    """Measure a mix at least each so many rounds; unusual ones and the final merge always are. Source: ours."""
    check_slack: Annotated[float, POSITIVE, Role.BOUNDED] = 0.25
    """A mix may raise the loss of those rows by this share of what it is without any learning. Source: ours: honest
    neighbors with other data raise it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """How others are found and reached."""

    name: Annotated[str, Role.OWN, EVERYDAY] = ""
    """Shown to others; default: the last letters of the peer id."""
    join: Annotated[tuple[str, ...], Role.OWN, EVERYDAY] = ()
    """Addresses of peers to join, /ip4/.../tcp/.../p2p/...; empty = start a new group."""
    join_timeout_s: Annotated[float, NOT_NEGATIVE, Role.OWN] = 15.0
    """Keep trying to reach the peers to join for this long, seconds, before giving up. Source: guess."""
    open: Annotated[bool, Role.RUN, EVERYDAY] = False
    """Let everybody connect who knows our address; default: only those who know the group's secret."""
    secret: Annotated[str, Role.RUN, EVERYDAY] = ""
    """The secret of the group to join; it is kept in the home folder, so that a restart needs no more."""
    allow: Annotated[tuple[str, ...], Role.OWN, EVERYDAY] = ()
    """Ids of the peers that may connect, instead of all who know the secret (peer id shows one's own)."""
    listen: Annotated[str, Role.OWN, EVERYDAY] = "/ip4/0.0.0.0/tcp/0"
    """Address to listen on; port 0 = any free one."""
    announce: Annotated[tuple[str, ...], Role.OWN, EVERYDAY] = ()
    """Addresses to tell others instead of the ones found on this machine's interfaces."""
    connections_max: Annotated[int, AT_LEAST_8, Role.OWN] = 64
    """Connections to others at a time; a quarter may be of peers that have not said hello. Source: docs/limits.md."""
    wait_peers: Annotated[int, NOT_NEGATIVE, Role.OWN, EVERYDAY] = 0
    """Wait for so many other peers before the first round; 0 = start at once."""
    wait_peers_s: Annotated[float, NOT_NEGATIVE, Role.OWN] = 60.0
    """Longest such wait, seconds; then start with whoever is there. Source: guess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyOptions:
    """What others can learn of our rows."""

    dp_epsilon: Annotated[float, NOT_NEGATIVE, Role.BOUNDED | Role.METHOD, EVERYDAY] = 0.0
    """Differential privacy of every row of ours: epsilon that all runs on these data may spend; 0 = no such promise."""
    dp_delta: Annotated[float, OPEN_SHARE, Role.BOUNDED | Role.METHOD] = 1e-5
    """Delta of the same; well below one in the number of rows. Source: Abadi et al. (arXiv 1607.00133)."""
    dp_clip: Annotated[float, POSITIVE, Role.BOUNDED | Role.METHOD] = 1.0
    """Longest gradient of one unit, Euclidean; longer ones are clipped. Source: docs/differential-privacy.md."""
    dp_unit: Annotated[str, Role.BOUNDED | Role.METHOD] = "row"
    """Whose data are protected: row, or a field of the rows, such as author: then all rows with the same value."""
    readers: Annotated[Literal["auto", "all", "row"], Role.OWN, EVERYDAY] = "auto"
    """Who may read our adapters: all members, or only those whose row of W names us; auto = row where a roster makes
    the topology known to all."""
    mask: Annotated[Literal["none", "pairs"], Role.RUN, EVERYDAY] = "none"
    """Hide single adapters: with pairs, a reader learns the weighted sum of its row and nothing else."""
    canaries: Annotated[int, NOT_NEGATIVE, Role.BOUNDED] = 0
    """Random rows planted among ours, so that `peer audit` can tell how much of a row seen once is remembered."""
    audit: Annotated[bool, Role.OWN, EVERYDAY] = False
    """Measure at the end how well our adapters tell our rows from others; the result goes into the model card."""
