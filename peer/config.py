"""One frozen configuration of a peer. Flags, environment and TOML file all fill this class; nothing else does.

Options stand in sections; what an option's marks mean is said in ``options.py``, and every list of options in this
project is read off these declarations. Every default says where it comes from: a reference, our bench, or "guess".
Names are those of Hugging Face's trainers where they exist there, because users know them. This file imports nothing
heavy: ``--help`` reads it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter

from gossip.errors import LocalError
from peer.options import (
    AT_LEAST_8,
    BELOW_ONE,
    NOT_NEGATIVE,
    OPEN_SHARE,
    POSITIVE,
    SHARE,
    AdapterField,
    Option,
    Role,
    declared_options,
)

ADAPTER_KINDS = (
    "lora", "rslora", "dora", "lora-xs", "ia3", "loha", "vera", "oft", "prompt-tuning", "prefix-tuning", "layernorm",
    "full",
)  # fmt: skip
"""Kinds of adapter, in the order of ``peer/training/adapter_kinds.py``, which says what each is."""

LocalOptimizer = Literal["adamw", "sgd"]
"""What can take local steps, in the order of ``peer/training/local_steps.py``."""

MomentsRule = Literal["keep", "reset"]
"""What can become of the local optimizer's moments where a round begins."""

ScheduleName = Literal["constant", "linear", "cosine", "wsd"]
"""How the learning rate changes over a run, in the order of ``peer/training/schedules.py``."""

TaskName = Literal["causal-lm", "classification"]
"""What can be learned, in the order of ``peer/training/tasks.py``."""

LOCAL_OPTIMIZERS: tuple[str, ...] = get_args(LocalOptimizer)
MOMENTS_RULES: tuple[str, ...] = get_args(MomentsRule)
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)
TASKS: tuple[str, ...] = get_args(TaskName)
"""Their names, to check what a configuration says where no type does."""

UNMIXABLE = {
    "p-tuning": "what it saves is computed by an encoder, and the encoder that trains is not saved, so that mixing "
    "would never reach it; use prompt-tuning",
    "adalora": "each peer would prune to ranks of its own, so that no two adapters have the same tensors; use lora",
}
"""Kinds that peft has and that cannot be mixed, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """What is learned from."""

    data: tuple[Path, ...] = ()
    """Training text: .jsonl .json .csv .parquet .txt files, or a folder saved by `datasets`."""
    eval_data: tuple[Path, ...] = ()
    """More text that is only measured, never trained on: its loss is reported as "all"."""
    held_out: Annotated[float, OPEN_SHARE, Role.COMPARISON] = 0.1
    """Share of the rows kept for evaluation, 0 < x < 1. Source: common practice."""
    eval_blocks_max: Annotated[int, POSITIVE, Role.COMPARISON] = 16
    """At most this many held-out sequences per file are evaluated. Source: our bench (0.12 s each on one core)."""
    eval_every: Annotated[int, POSITIVE] = 5
    """Evaluate each so many rounds, and at the last. Source: our bench; in the demo it costs as much as 2 rounds."""
    bad_rows: Literal["skip", "refuse"] = "skip"
    """What to do with a row that cannot be used: report and skip it, or refuse to start."""
    answers_only: Annotated[bool, Role.COMPARISON] = False
    """Learn only the last answer of a chat ("messages"), not the whole of it. Rows of prompt and completion are always
    learned so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What learns: the task, the frozen base model and the adapter."""

    task: Annotated[TaskName, Role.RUN | Role.MODEL] = "causal-lm"
    """What is learned: to continue text, or to give a text one of the labels."""
    labels: Annotated[tuple[str, ...], Role.RUN | Role.MODEL] = ()
    """Classes of a classification, at least 2. All peers of a run need the same ones in the same order, also who has
    no text of some of them."""
    private_head: Annotated[bool, Role.RUN] = False
    """Keep the classification's head, which is trained too, to ourselves. Source: ours: all peers have the same labels,
    so it is shared; personalized learning keeps it (algorithms.md section 6)."""
    model: Annotated[str, Role.RUN | Role.MODEL | Role.COMPARISON] = "smollm2-135m"
    """Alias (smollm2-135m, tiny), local folder, or Hugging Face id."""
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Role.RUN | Role.MODEL | Role.COMPARISON
    ] = "auto"
    """Precision of the base weights; auto = as stored, so that local peers share them by mmap."""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Role.MODEL | Role.COMPARISON] = "auto"
    """Where to train; auto = cuda, else mps, else cpu."""
    load_in_4bit: Annotated[bool, Role.RUN | Role.MODEL] = False
    """Load the base in 4-bit NF4 through bitsandbytes (needs a CUDA device)."""
    threads: Annotated[int, NOT_NEGATIVE, Role.MODEL | Role.COMPARISON] = 0
    """Torch threads; 0 = all cores. Give 1 to each of several peers on one machine (oversubscription costs 3-10x)."""
    adapter: Annotated[str, Role.RUN | Role.MODEL | Role.METHOD, AdapterField("kind")] = "lora"
    """Kind of PEFT adapter: lora, rslora, dora, lora-xs, ia3, loha, vera, oft, prompt-tuning, prefix-tuning or
    layernorm; or full: all weights of a small model."""
    lora_r: Annotated[int, POSITIVE, Role.RUN | Role.MODEL | Role.METHOD, AdapterField("r")] = 8
    """Rank. Source: LoRA paper (arXiv 2106.09685), table 6: 4-8 suffice."""
    lora_alpha: Annotated[int, POSITIVE, Role.RUN | Role.MODEL | Role.METHOD, AdapterField("alpha")] = 16
    """Scale numerator. Source: PEFT examples, 2r."""
    lora_dropout: Annotated[float, BELOW_ONE, Role.MODEL | Role.METHOD] = 0.0
    """Dropout on the adapter's input. Source: guess; short runs do not overfit."""
    lora_target_modules: Annotated[
        tuple[str, ...], Role.RUN | Role.MODEL | Role.COMPARISON, AdapterField("target_modules")
    ] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Module names to adapt. Source: our bench on SmolLM2 (docs/results.md)."""
    virtual_tokens: Annotated[int, POSITIVE, Role.RUN | Role.MODEL, AdapterField("virtual_tokens")] = 16
    """Length of the prompt of prompt-tuning and prefix-tuning. Source: prompt tuning paper (arXiv 2104.08691), section
    3.2: little is gained beyond 20."""
    oft_block_size: Annotated[int, POSITIVE, Role.RUN | Role.MODEL, AdapterField("oft_block_size")] = 32
    """Width of the rotated blocks of oft; must divide the adapted modules' inputs. Source: PEFT's default."""
    lora_layers: Annotated[str, Role.RUN | Role.MODEL | Role.COMPARISON, AdapterField("layers")] = ""
    """Layers to adapt, as "18-29" or "0,5,7"; empty = all. Source: our bench on SmolLM2: the upper 12 of 30 take
    a third less time a step and 60 % fewer bytes, but learn less in the same time (4.18 against 4.06 nats)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The run as a whole, and where it is kept."""

    seed: Annotated[int, NOT_NEGATIVE, Role.RUN | Role.MODEL] = 0
    """Seed of the run: initial adapter and shared random topologies. All peers of a run need the same one."""
    rounds: Annotated[int, POSITIVE, Role.RUN] = 10
    """Rounds to run; a round is local steps, then one exchange."""
    home: Path | None = None
    """Where identity and checkpoints live; default: gossip-peer in the user's state folder."""
    keep_checkpoints: Annotated[int, POSITIVE] = 2
    """Complete checkpoints kept. Source: one may be found corrupt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """Local training."""

    trainer: str = "local-steps"
    """Who takes the local steps, in the training process: local-steps (transformers and peft), or your own trainer as
    module:function. Each peer may have another. Source: ours."""
    local_steps: Annotated[int, POSITIVE, Role.METHOD] = 2
    """Optimizer steps per round (H). Source: our bench on the demo (docs/results.md)."""
    batch_size: Annotated[int, POSITIVE, Role.METHOD] = 4
    """Sequences per step. Source: our bench on 2 cores."""
    max_length: Annotated[int, POSITIVE, Role.MODEL | Role.COMPARISON] = 64
    """Tokens per sequence. Source: our bench on 2 cores; raise it on a GPU."""
    learning_rate: Annotated[float, NOT_NEGATIVE, Role.RUN] = 0.0
    """Learning rate; 0 = chosen by a short trial on one's own text before the first round, which the line for friends
    then tells. Source: ours; a wrong rate costs more than any method gains (docs/results.md)."""
    schedule: Annotated[ScheduleName, Role.RUN | Role.METHOD] = "constant"
    """How the rate changes over the run's steps: constant, linear (to 0 at the end), cosine, or wsd (warm-up, stable,
    falling over the last fifth). Source: what our tables were measured with."""
    warmup_steps: Annotated[int, NOT_NEGATIVE, Role.RUN | Role.METHOD] = 0
    """The run's first steps, over which the rate rises to its full height. Source: guess; short runs need none."""
    local_optimizer: Annotated[LocalOptimizer, Role.METHOD] = "adamw"
    """What takes the local steps: adamw, or plain sgd, for methods whose theory assumes it. Source: LoRA paper."""
    moments: Annotated[MomentsRule, Role.METHOD] = "keep"
    """AdamW's moments, when a mix has replaced the adapter that they are of: keep, or reset them in every round.
    Source: our bench on the tiny model."""
    proximal: Annotated[float, NOT_NEGATIVE, Role.METHOD] = 0.0
    """Pull toward where the round began: adds proximal * (x - x_start) to each gradient; 0 = none. Source:
    FedProx (arXiv 1812.06127), which tries 0.001 to 1; it pays where peers' texts differ much."""
    weight_decay: Annotated[float, NOT_NEGATIVE, Role.METHOD] = 0.0
    """Weight decay. Source: LoRA paper's setting for short runs."""
    max_grad_norm: Annotated[float, POSITIVE, Role.METHOD] = 1.0
    """Gradient clipping. Source: Hugging Face Trainer default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixingOptions:
    """Who reads whom, what travels, and how it is mixed."""

    topology: str = "epidemic:4"
    """Who reads whom. Source: Epidemic Learning (NeurIPS 2023), s = ceil(log2 n) for up to 16; rows of four are the
    shortest in which a robust rule bears a liar (docs/robustness.md)."""
    weights: Annotated[str, Role.METHOD] = "metropolis-hastings"
    """Weights of static graphs. Source: need only the neighbors' degrees and keep the mean; topology/weights.py."""
    roster: tuple[str, ...] = ()
    """Peer ids of a fixed group: owners of a matrix file's rows (in sorted order) where the file names none."""
    factors: Annotated[str, Role.RUN | Role.METHOD] = "both"
    """Which of LoRA's factors are trained, travel and are mixed: both, ffa, alternate[:T], share-a, r-only, tsvd.
    Source: Dec-LoRA (arXiv 2501.15361); with tuned learning rates none is clearly better (docs/results.md)."""
    mixing: Annotated[str, Role.RUN | Role.METHOD] = "average"
    """How a row of adapters is combined: average, age, staleness[:A], push-sum, symmetric-drop. Source: D-PSGD."""
    optimizer: Annotated[str, Role.RUN | Role.METHOD] = "none"
    """What a round does around the mixing: none, qg, d2, k-gt, noloco, diloco, fedexp, fedadam.
    Source: docs/results.md."""
    codec: Annotated[str, Role.RUN | Role.METHOD] = "float32"
    """How adapters travel: float32, bfloat16, int8, int4, sign, topk[:F], randomk[:F], lowrank[:R]."""
    feedback: Annotated[str, Role.RUN | Role.METHOD] = "auto"
    """What is remembered of what a codec lost: none, error (DeepSqueeze), replica (CHOCO); auto = what fits it."""
    gamma: Annotated[float, SHARE, Role.RUN | Role.METHOD] = 0.0
    """Mixing step size, above 0 to 1; 0 = the codec's own, 1 from 8 bits on. Source: our bench."""
    budget_mb: Annotated[float, NOT_NEGATIVE, Role.RUN] = 0.0
    """Megabytes to read per round at most: chooses the most exact codec within it; 0 = no limit, --codec counts."""
    merge: Annotated[
        Literal["clipped", "product", "average", "trimmed", "median", "none"], Role.RUN | Role.METHOD
    ] = "clipped"
    """How adapters become one after the last round; clipped, trimmed and median bound what liars can do to it.
    Source: docs/robustness.md; an ICLR 2026 result for gossip."""
    average_last: Annotated[int, NOT_NEGATIVE, Role.METHOD] = 0
    """What goes into the final merge, and is kept, is the mean of our adapter over the last so many rounds; 0 = the
    last one. Source: latest weight averaging (arXiv 2209.14981); in our trials 2 or 3 gained 1 % of what is learned
    with small batches at a constant rate, and nothing where the rate falls."""
    overlap: Annotated[bool, Role.RUN | Role.METHOD] = False
    """Read neighbors while the next local steps run: hides the network, mixes adapters one round of steps old."""
    personalize: bool = False
    """Also keep the mix of our own and the common adapter that does best on our held-out rows, in HOME/personal."""
    collect_s: Annotated[float, NOT_NEGATIVE, Role.METHOD] = 60.0
    """Longest wait for neighbors, seconds; 0 = asynchronous. The actual deadline follows arrivals seen. Guess."""
    norm_cap: Annotated[float, POSITIVE, Role.METHOD] = 10.0
    """A neighbor farther from us than this many times our own norm is clipped to it. Source: guess."""
    robust: Annotated[str, Role.METHOD] = "auto"
    """What bounds the harm of lying neighbors in a row: none, clip, trim-clip[:B], nna[:B], trimmed[:B], median,
    geometric-median, krum[:B]; auto = trim-clip where a row reads at least 4. Source: docs/robustness.md."""
    step_cap: Annotated[float, POSITIVE, Role.METHOD] = 5.0
    """A neighbor farther from us than this many rounds of local steps (or usual distances of neighbors, if those are
    longer) is clipped to that. Source: our simulations, in which 3 clips 1 honest adapter in 500, and 5 none."""
    check_rows: Annotated[int, NOT_NEGATIVE] = 4
    """Own held-out sequences on which a mix is measured before it is kept; 0 = never. Source: ours; in the demo one
    measurement costs a sixth of a round."""
    check_every: Annotated[int, POSITIVE] = 10
    """Measure a mix at least each so many rounds; unusual ones and the final merge always are. Source: ours."""
    check_slack: Annotated[float, POSITIVE] = 0.25
    """A mix may raise the loss of those rows by this share of what it is without any learning. Source: ours: honest
    neighbors with other data raise it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """How others are found and reached."""

    name: str = ""
    """Shown to others; default: the last letters of the peer id."""
    join: tuple[str, ...] = ()
    """Addresses of peers to join, /ip4/.../tcp/.../p2p/...; empty = start a new group."""
    join_timeout_s: Annotated[float, NOT_NEGATIVE] = 15.0
    """Keep trying to reach the peers to join for this long, seconds, before giving up. Source: guess."""
    open: Annotated[bool, Role.RUN] = False
    """Let everybody connect who knows our address; default: only those who know the group's secret."""
    secret: Annotated[str, Role.RUN] = ""
    """The secret of the group to join; it is kept in the home folder, so that a restart needs no more."""
    allow: tuple[str, ...] = ()
    """Ids of the peers that may connect, instead of all who know the secret (peer id shows one's own)."""
    listen: str = "/ip4/0.0.0.0/tcp/0"
    """Address to listen on; port 0 = any free one."""
    announce: tuple[str, ...] = ()
    """Addresses to tell others instead of the ones found on this machine's interfaces."""
    connections_max: Annotated[int, AT_LEAST_8] = 64
    """Connections to others at a time; a quarter may be of peers that have not said hello. Source: docs/limits.md."""
    wait_peers: Annotated[int, NOT_NEGATIVE] = 0
    """Wait for so many other peers before the first round; 0 = start at once."""
    wait_peers_s: Annotated[float, NOT_NEGATIVE] = 60.0
    """Longest such wait, seconds; then start with whoever is there. Source: guess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyOptions:
    """What others can learn of our rows."""

    dp_epsilon: Annotated[float, NOT_NEGATIVE, Role.METHOD] = 0.0
    """Differential privacy of every row of ours: epsilon that all runs on these data may spend; 0 = no such promise."""
    dp_delta: Annotated[float, OPEN_SHARE, Role.METHOD] = 1e-5
    """Delta of the same; well below one in the number of rows. Source: Abadi et al. (arXiv 1607.00133)."""
    dp_clip: Annotated[float, POSITIVE, Role.METHOD] = 1.0
    """Longest gradient of one unit, Euclidean; longer ones are clipped. Source: docs/differential-privacy.md."""
    dp_unit: Annotated[str, Role.METHOD] = "row"
    """Whose data are protected: row, or a field of the rows, such as author: then all rows with the same value."""
    readers: Literal["auto", "all", "row"] = "auto"
    """Who may read our adapters: all members, or only those whose row of W names us; auto = row where a roster makes
    the topology known to all."""
    mask: Annotated[Literal["none", "pairs"], Role.RUN] = "none"
    """Hide single adapters: with pairs, a reader learns the weighted sum of its row and nothing else."""
    canaries: Annotated[int, NOT_NEGATIVE] = 0
    """Random rows planted among ours, so that `peer audit` can tell how much of a row seen once is remembered."""
    audit: bool = False
    """Measure at the end how well our adapters tell our rows from others; the result goes into the model card."""


FLAT = Parameter(name="*")
"""Flags, environment variables and keys of a file are the options' own names, without their section's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """All settings of one peer. Checked once, in ``__post_init__``; immutable afterwards.

    Raises:
        LocalError: a value out of range; the message names the option, the value and what would be valid.
    """

    data: Annotated[DataOptions, FLAT] = DataOptions()
    model: Annotated[ModelOptions, FLAT] = ModelOptions()
    run: Annotated[RunOptions, FLAT] = RunOptions()
    training: Annotated[TrainingOptions, FLAT] = TrainingOptions()
    mixing: Annotated[MixingOptions, FLAT] = MixingOptions()
    privacy: Annotated[PrivacyOptions, FLAT] = PrivacyOptions()
    network: Annotated[NetworkOptions, FLAT] = NetworkOptions()

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            option.check(self.option(name))
        adapter, training = self.model.adapter, self.training
        if adapter not in ADAPTER_KINDS:
            reason = f" {adapter} cannot be mixed: {UNMIXABLE[adapter]}." if adapter in UNMIXABLE else ""
            raise LocalError(f"unknown --adapter {adapter!r}; known: {', '.join(ADAPTER_KINDS)}.{reason}")
        _check_known("local-optimizer", training.local_optimizer, LOCAL_OPTIMIZERS)
        _check_known("moments", training.moments, MOMENTS_RULES)
        _check_known("schedule", training.schedule, SCHEDULES)
        _check_task(self.model)

    @staticmethod
    def of(**options: Any) -> PeerConfig:
        """Return the configuration with these options, by their names alone; all others have their defaults."""
        return PeerConfig().with_options(**options)

    def with_options(self, **options: Any) -> PeerConfig:
        """Return this configuration with some options changed, by their names alone.

        Raises:
            LocalError: a value out of range.
            TypeError: there is no such option (our bug).
        """
        sections: dict[str, dict[str, Any]] = {}
        for name, value in options.items():
            if name not in OPTIONS:
                raise TypeError(f"there is no option {name!r}")
            sections.setdefault(OPTIONS[name].section, {})[name] = value
        changed = {
            section: dataclasses.replace(getattr(self, section), **values)
            for section, values in sections.items()
        }
        return dataclasses.replace(self, **changed)

    def option(self, name: str) -> Any:
        """Return the value of an option by its name alone."""
        return getattr(getattr(self, OPTIONS[name].section), name)

    def to_json(self) -> str:
        """Return all options as one JSON object (paths as text): what the training process is started with."""
        return json.dumps({name: self.option(name) for name in OPTIONS}, default=str)

    @staticmethod
    def from_json(text: str) -> PeerConfig:
        """Inverse of ``to_json``."""
        options: dict[str, Any] = json.loads(text)
        for name, option in OPTIONS.items():
            if isinstance(option.default, tuple):
                options[name] = tuple(options[name])
        for name in ("data", "eval_data"):
            options[name] = tuple(Path(path) for path in options[name])
        options["home"] = Path(options["home"]) if options["home"] else None
        return PeerConfig.of(**options)


OPTIONS: dict[str, Option] = declared_options(PeerConfig)
"""Every option of a peer by its name."""


def _check_known(option: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise LocalError(f"unknown --{option} {name!r}; known: {', '.join(known)}")


def _check_task(model: ModelOptions) -> None:
    _check_known("task", model.task, TASKS)
    labels = model.labels
    if model.task != "classification":
        if labels or model.private_head:
            raise LocalError(
                "labels and private_head are for --task classification only: give that task, or neither"
            )
        return
    if (
        len(labels) < 2
        or len(set(labels)) < len(labels)
        or not all(label.strip() == label != "" for label in labels)
    ):
        raise LocalError(
            f"--task classification needs at least 2 different labels, not {', '.join(labels) or 'none'}: give each "
            "class that any peer has with --labels, in the same order everywhere"
        )
