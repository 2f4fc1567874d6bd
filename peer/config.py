"""One frozen configuration of a peer. Flags, environment and TOML file all fill this class; nothing else does.

Every default says where it comes from: a reference, our bench, or "guess". Field names are those of Hugging Face's
trainers where they exist there, because users know them. This file imports nothing heavy: ``--help`` reads it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gossip.errors import LocalError

ADAPTER_KINDS = (
    "lora", "rslora", "dora", "lora-xs", "ia3", "loha", "vera", "oft", "prompt-tuning", "prefix-tuning", "layernorm",
    "full",
)  # fmt: skip
"""Kinds of adapter, in the order of ``peer/training/adapter_kinds.py``, which says what each is."""

LOCAL_OPTIMIZERS = ("adamw", "sgd")
"""What can take local steps, in the order of ``peer/training/local_trainer.py``."""

TASKS = ("causal-lm", "classification")
"""What can be learned, in the order of ``peer/training/tasks.py``."""

UNMIXABLE = {
    "p-tuning": "what it saves is computed by an encoder, and the encoder that trains is not saved, so that mixing "
    "would never reach it; use prompt-tuning",
    "adalora": "each peer would prune to ranks of its own, so that no two adapters have the same tensors; use lora",
}
"""Kinds that peft has and that cannot be mixed, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """All settings of one peer. Checked once, in ``__post_init__``; immutable afterwards.

    Raises:
        LocalError: a value out of range; the message names the field, the value and what would be valid.
    """

    # -- what is learned, from what
    data: tuple[Path, ...] = ()
    """Training text: .jsonl .json .csv .parquet .txt files, or a folder saved by `datasets`."""
    eval_data: tuple[Path, ...] = ()
    """More text that is only measured, never trained on: its loss is reported as "all"."""
    held_out: float = 0.1
    """Share of the rows kept for evaluation, 0 < x < 1. Source: common practice."""
    eval_blocks_max: int = 16
    """At most this many held-out sequences per file are evaluated. Source: our bench (0.12 s each on one core)."""
    eval_every: int = 5
    """Evaluate each so many rounds, and at the last. Source: our bench; in the demo it costs as much as 2 rounds."""
    bad_rows: Literal["skip", "refuse"] = "skip"
    """What to do with a row that cannot be used: report and skip it, or refuse to start."""

    task: Literal["causal-lm", "classification"] = "causal-lm"
    """What is learned: to continue text, or to give a text one of the labels."""
    labels: tuple[str, ...] = ()
    """Classes of a classification, at least 2. All peers of a run need the same ones in the same order, also who has
    no text of some of them."""
    private_head: bool = False
    """Keep the classification's head, which is trained too, to ourselves. Source: ours: all peers have the same labels,
    so it is shared; personalized learning keeps it (algorithms.md section 6)."""
    answers_only: bool = False
    """Learn only the last answer of a chat ("messages"), not the whole of it. Rows of prompt and completion are always
    learned so."""

    # -- the frozen base model
    model: str = "smollm2-135m"
    """Alias (smollm2-135m, tiny), local folder, or Hugging Face id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the base weights; auto = as stored, so that local peers share them by mmap."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto = cuda, else mps, else cpu."""
    load_in_4bit: bool = False
    """Load the base in 4-bit NF4 through bitsandbytes (needs a CUDA device)."""
    threads: int = 0
    """Torch threads; 0 = all cores. Give 1 to each of several peers on one machine (oversubscription costs 3-10x)."""

    # -- the adapter
    adapter: str = "lora"
    """Kind of PEFT adapter: lora, rslora, dora, lora-xs, ia3, loha, vera, oft, prompt-tuning, prefix-tuning or
    layernorm; or full: all weights of a small model."""
    lora_r: int = 8
    """Rank. Source: LoRA paper (arXiv 2106.09685), table 6: 4-8 suffice."""
    lora_alpha: int = 16
    """Scale numerator. Source: PEFT examples, 2r."""
    lora_dropout: float = 0.0
    """Dropout on the adapter's input. Source: guess; short runs do not overfit."""
    lora_target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Module names to adapt. Source: our bench on SmolLM2 (docs/results.md)."""
    virtual_tokens: int = 16
    """Length of the prompt of prompt-tuning and prefix-tuning. Source: prompt tuning paper (arXiv 2104.08691), section
    3.2: little is gained beyond 20."""
    oft_block_size: int = 32
    """Width of the rotated blocks of oft; must divide the adapted modules' inputs. Source: PEFT's default."""
    lora_layers: str = ""
    """Layers to adapt, as "18-29" or "0,5,7"; empty = all. Source: our bench on SmolLM2: the upper 12 of 30 take
    a third less time a step and 60 % fewer bytes, but learn less in the same time (4.18 against 4.06 nats)."""

    # -- local training
    rounds: int = 10
    """Rounds to run; a round is local steps, then one exchange."""
    local_steps: int = 2
    """Optimizer steps per round (H). Source: our bench on the demo (docs/results.md)."""
    batch_size: int = 4
    """Sequences per step. Source: our bench on 2 cores."""
    max_length: int = 64
    """Tokens per sequence. Source: our bench on 2 cores; raise it on a GPU."""
    learning_rate: float = 2e-3
    """Learning rate, constant. Source: our bench on the demo; the few values of lora-xs want about 0.05."""
    weight_decay: float = 0.0
    """Weight decay. Source: LoRA paper's setting for short runs."""
    max_grad_norm: float = 1.0
    """Gradient clipping. Source: Hugging Face Trainer default."""
    local_optimizer: Literal["adamw", "sgd"] = "adamw"
    """What takes the local steps: adamw, or plain sgd, for methods whose theory assumes it. Source: LoRA paper."""
    proximal: float = 0.0
    """Pull toward where the round began: adds proximal * (x - x_start) to each gradient; 0 = none. Source:
    FedProx (arXiv 1812.06127), which tries 0.001 to 1; it pays where peers' texts differ much."""
    seed: int = 0
    """Seed of the run: initial adapter and shared random topologies. All peers of a run need the same one."""

    # -- gossip
    topology: str = "epidemic:3"
    """Who reads whom. Source: Epidemic Learning (NeurIPS 2023), s = ceil(log2 n) for up to 8 peers."""
    weights: str = "metropolis-hastings"
    """Weights of static graphs. Source: need only the neighbors' degrees and keep the mean; topology/weights.py."""
    roster: tuple[str, ...] = ()
    """Peer ids of a fixed group: owners of a matrix file's rows (in sorted order) where the file names none."""
    factors: str = "both"
    """Which of LoRA's factors are trained, travel and are mixed: both, ffa, alternate[:T], share-a, r-only, tsvd.
    Source: Dec-LoRA (arXiv 2501.15361); with tuned learning rates none is clearly better (docs/results.md)."""
    mixing: str = "average"
    """How a row of adapters is combined: average, age, staleness[:A], push-sum, symmetric-drop. Source: D-PSGD."""
    optimizer: str = "none"
    """What a round does around the mixing: none, qg, d2, k-gt, noloco, diloco. Source: docs/results.md."""
    codec: str = "float32"
    """How adapters travel: float32, bfloat16, int8, int4, sign, topk[:F], randomk[:F], lowrank[:R]."""
    feedback: str = "auto"
    """What is remembered of what a codec lost: none, error (DeepSqueeze), replica (CHOCO); auto = what fits it."""
    gamma: float = 0.0
    """Mixing step size, above 0 to 1; 0 = the codec's own, 1 from 8 bits on. Source: our bench."""
    budget_mb: float = 0.0
    """Megabytes to read per round at most: chooses the most exact codec within it; 0 = no limit, --codec counts."""
    overlap: bool = False
    """Read neighbors while the next local steps run: hides the network, mixes adapters one round of steps old."""
    merge: Literal["product", "average", "none"] = "product"
    """How adapters become one after the last round. Source: docs/results.md; an ICLR 2026 result for gossip."""
    personalize: bool = False
    """Also keep the mix of our own and the common adapter that does best on our held-out rows, in HOME/personal."""
    collect_s: float = 60.0
    """Longest wait for neighbors, seconds; 0 = asynchronous. The actual deadline follows arrivals seen. Guess."""
    norm_cap: float = 10.0
    """A neighbor farther from us than this many times our own norm is clipped to it. Source: guess."""

    # -- network
    name: str = ""
    """Shown to others; default: the last letters of the peer id."""
    join: tuple[str, ...] = ()
    """Addresses of peers to join, /ip4/.../tcp/.../p2p/...; empty = start a new group."""
    join_timeout_s: float = 15.0
    """Keep trying to reach the peers to join for this long, seconds, before giving up. Source: guess."""
    listen: str = "/ip4/0.0.0.0/tcp/0"
    """Address to listen on; port 0 = any free one."""
    announce: tuple[str, ...] = ()
    """Addresses to tell others instead of the ones found on this machine's interfaces."""
    wait_peers: int = 0
    """Wait for so many other peers before the first round; 0 = start at once."""
    wait_peers_s: float = 60.0
    """Longest such wait, seconds; then start with whoever is there. Source: guess."""

    # -- files and output
    home: Path | None = None
    """Where identity and checkpoints live; default: gossip-peer in the user's state folder."""
    keep_checkpoints: int = 2
    """Complete checkpoints kept. Source: one may be found corrupt."""

    def __post_init__(self) -> None:
        positive = ("rounds", "local_steps", "batch_size", "max_length", "lora_r", "lora_alpha", "virtual_tokens",
                    "oft_block_size", "eval_every", "eval_blocks_max", "keep_checkpoints", "learning_rate",
                    "max_grad_norm", "norm_cap")  # fmt: skip
        for field in positive:
            if not getattr(self, field) > 0:
                raise LocalError(f"{field} must be greater than 0, not {getattr(self, field)!r}")
        if self.adapter not in ADAPTER_KINDS:
            reason = (
                f" {self.adapter} cannot be mixed: {UNMIXABLE[self.adapter]}."
                if self.adapter in UNMIXABLE
                else ""
            )
            raise LocalError(
                f"unknown --adapter {self.adapter!r}; known: {', '.join(ADAPTER_KINDS)}.{reason}"
            )
        for field in (
            "collect_s",
            "join_timeout_s",
            "wait_peers",
            "wait_peers_s",
            "threads",
            "weight_decay",
            "proximal",
            "budget_mb",
            "seed",
        ):
            if getattr(self, field) < 0:
                raise LocalError(f"{field} must not be negative: {getattr(self, field)!r}")
        if self.local_optimizer not in LOCAL_OPTIMIZERS:
            raise LocalError(
                f"unknown --local-optimizer {self.local_optimizer!r}; known: {', '.join(LOCAL_OPTIMIZERS)}"
            )
        if not 0 <= self.gamma <= 1:
            raise LocalError(f"gamma must lie between 0 and 1, not {self.gamma!r}")
        _check_task(self.task, self.labels, self.private_head)
        if not 0 < self.held_out < 1:
            raise LocalError(f"held_out must lie between 0 and 1 (both excluded), not {self.held_out!r}")
        if not 0 <= self.lora_dropout < 1:
            raise LocalError(f"lora_dropout must be at least 0 and below 1, not {self.lora_dropout!r}")

    def to_json(self) -> str:
        """Return all fields as one JSON object (paths as text): what the training process is started with."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @staticmethod
    def from_json(text: str) -> PeerConfig:
        """Inverse of ``to_json``."""
        raw: dict[str, Any] = json.loads(text)
        for field in ("data", "eval_data"):
            raw[field] = tuple(Path(path) for path in raw[field])
        for field in ("join", "announce", "lora_target_modules", "roster", "labels"):
            raw[field] = tuple(raw[field])
        raw["home"] = Path(raw["home"]) if raw["home"] else None
        return PeerConfig(**raw)


def _check_task(task: str, labels: tuple[str, ...], private_head: bool) -> None:
    if task not in TASKS:
        raise LocalError(f"unknown --task {task!r}; known: {', '.join(TASKS)}")
    if task != "classification":
        if labels or private_head:
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
