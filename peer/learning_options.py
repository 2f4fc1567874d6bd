"""Options of what a peer learns, from what, and how: sections of ``config.py``, for the training process.

What an option's marks mean is said in ``options.py``. Every default says where it comes from: a reference, our bench or
"guess". Names are those of Hugging Face's trainers where they exist there, because users know them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from peer.options import (
    AT_LEAST_2,
    BELOW_ONE,
    EVERYDAY,
    NOT_NEGATIVE,
    OPEN_SHARE,
    POSITIVE,
    Role,
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

TaskName = Literal["causal-lm", "classification", "agent"]
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

    data: Annotated[tuple[Path, ...], Role.BOUNDED, EVERYDAY] = ()
    """Training text: .jsonl .json .csv .parquet .txt files, or a folder saved by `datasets`."""
    eval_data: Annotated[tuple[Path, ...], Role.OWN, EVERYDAY] = ()
    """More text that is only measured, never trained on: its loss is reported as "all"."""
    held_out: Annotated[float, OPEN_SHARE, Role.BOUNDED | Role.COMPARISON] = 0.1
    """Share of the rows kept for evaluation, 0 < x < 1. Source: common practice."""
    eval_blocks_max: Annotated[int, POSITIVE, Role.OWN | Role.COMPARISON] = 16
    """At most this many held-out sequences per file are evaluated. Source: our bench (0.12 s each on one core)."""
    eval_every: Annotated[int, POSITIVE, Role.OWN] = 5
    """Evaluate each so many rounds, and at the last. Source: our bench; in the demo it costs as much as 2 rounds."""
    bad_rows: Annotated[Literal["skip", "refuse"], Role.BOUNDED] = "skip"
    """What to do with a row that cannot be used: report and skip it, or refuse to start."""
    answers_only: Annotated[bool, Role.BOUNDED | Role.COMPARISON] = False
    """Learn only the last answer of a chat ("messages"), not the whole of it. Rows of prompt and completion are always
    learned so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What learns: the task, the frozen base model and the adapter."""

    task: Annotated[TaskName, Role.RUN | Role.MODEL, EVERYDAY] = "causal-lm"
    """What is learned: to continue text, to give a text one of the labels, or to answer questions of environments by
    trial (--tasks)."""
    labels: Annotated[tuple[str, ...], Role.RUN | Role.MODEL, EVERYDAY] = ()
    """Classes of a classification, at least 2. All peers of a run need the same ones in the same order, also who has
    no text of some of them."""
    private_head: Annotated[bool, Role.RUN] = False
    """Keep the classification's head, which is trained too, to ourselves. Source: ours: all peers have the same labels,
    so it is shared; personalized learning keeps it (algorithms.md section 6)."""
    model: Annotated[str, Role.RUN | Role.MODEL | Role.COMPARISON, EVERYDAY] = "smollm2-135m"
    """Alias (smollm2-135m, tiny), local folder, or Hugging Face id."""
    from_scratch: Annotated[str, Role.RUN | Role.MODEL | Role.COMPARISON, EVERYDAY] = ""
    """Begin with an untrained model and train all of it: nano, micro, mini, or the path of a config.json of
    transformers, the same for all peers. --model is not used then."""
    tokenizer: Annotated[str, Role.RUN | Role.MODEL | Role.COMPARISON] = "bytes"
    """Tokenizer of a model from scratch: bytes, or a folder that has one. Source: bytes need no training."""
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Role.RUN | Role.MODEL | Role.COMPARISON
    ] = "auto"
    """Precision of the base weights; auto = as stored, so that local peers share them by mmap."""
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], Role.OWN | Role.MODEL | Role.COMPARISON, EVERYDAY
    ] = "auto"
    """Where to train; auto = cuda, else mps, else cpu."""
    load_in_4bit: Annotated[bool, Role.RUN | Role.MODEL] = False
    """Load the base in 4-bit NF4 through bitsandbytes (needs a CUDA device)."""
    threads: Annotated[int, NOT_NEGATIVE, Role.OWN | Role.MODEL | Role.COMPARISON, EVERYDAY] = 0
    """Torch threads; 0 = all cores. Give 1 to each of several peers on one machine (oversubscription costs 3-10x)."""
    adapter: Annotated[str, Role.RUN | Role.MODEL | Role.METHOD, EVERYDAY] = "auto"
    """Kind of PEFT adapter: auto (lora; full from scratch), lora, rslora, dora, lora-xs, ia3, loha, vera, oft,
    prompt-tuning, prefix-tuning or layernorm; or full: all weights of a small model."""
    lora_r: Annotated[int, POSITIVE, Role.RUN | Role.MODEL | Role.METHOD, EVERYDAY] = 8
    """Rank. Source: LoRA paper (arXiv 2106.09685), table 6: 4-8 suffice."""
    lora_alpha: Annotated[int, POSITIVE, Role.RUN | Role.MODEL | Role.METHOD] = 16
    """Scale numerator. Source: PEFT examples, 2r."""
    lora_dropout: Annotated[float, BELOW_ONE, Role.BOUNDED | Role.MODEL | Role.METHOD] = 0.0
    """Dropout on the adapter's input. Source: guess; short runs do not overfit."""
    lora_target_modules: Annotated[tuple[str, ...], Role.RUN | Role.MODEL | Role.COMPARISON] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    )
    """Module names to adapt. Source: our bench on SmolLM2 (docs/results.md)."""
    virtual_tokens: Annotated[int, POSITIVE, Role.RUN | Role.MODEL] = 16
    """Length of the prompt of prompt-tuning and prefix-tuning. Source: prompt tuning paper (arXiv 2104.08691), section
    3.2: little is gained beyond 20."""
    oft_block_size: Annotated[int, POSITIVE, Role.RUN | Role.MODEL] = 32
    """Width of the rotated blocks of oft; must divide the adapted modules' inputs. Source: PEFT's default."""
    lora_layers: Annotated[str, Role.RUN | Role.MODEL | Role.COMPARISON] = ""
    """Layers to adapt, as "18-29" or "0,5,7"; empty = all. Source: our bench on SmolLM2: the upper 12 of 30 take
    a third less time a step and 60 % fewer bytes, but learn less in the same time (4.18 against 4.06 nats)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """Local training."""

    trainer: Annotated[str, Role.BOUNDED] = "local-steps"
    """Who takes the local steps, in the training process: local-steps (transformers and peft; with --task agent that is
    grpo), or your own trainer as module:function. Each peer may have another. Source: ours."""
    local_steps: Annotated[int, POSITIVE, Role.BOUNDED | Role.METHOD, EVERYDAY] = 2
    """Optimizer steps per round (H). Source: our bench on the demo (docs/results.md)."""
    batch_size: Annotated[int, POSITIVE, Role.BOUNDED | Role.METHOD, EVERYDAY] = 4
    """Sequences per step. Source: our bench on 2 cores."""
    max_length: Annotated[int, POSITIVE, Role.RUN | Role.MODEL | Role.COMPARISON, EVERYDAY] = 64
    """Tokens per sequence. Source: our bench on 2 cores; raise it on a GPU."""
    learning_rate: Annotated[float, NOT_NEGATIVE, Role.RUN, EVERYDAY] = 0.0
    """Learning rate; 0 = chosen by a short trial on one's own text before the first round, which the line for friends
    then tells. Source: ours; a wrong rate costs more than any method gains (docs/results.md)."""
    schedule: Annotated[ScheduleName, Role.RUN | Role.METHOD, EVERYDAY] = "constant"
    """How the rate changes over the run's steps: constant, linear (to 0 at the end), cosine, or wsd (warm-up, stable,
    falling over the last fifth). Source: what our tables were measured with."""
    warmup_steps: Annotated[int, NOT_NEGATIVE, Role.RUN | Role.METHOD] = 0
    """The run's first steps, over which the rate rises to its full height. Source: guess; short runs need none."""
    accumulate: Annotated[int, POSITIVE, Role.BOUNDED | Role.METHOD] = 1
    """Batches whose mean gradient makes one step: as one batch of so many times --batch-size, in the memory of one.
    Source: 1 = none; more where a larger batch does not fit."""
    local_optimizer: Annotated[LocalOptimizer, Role.BOUNDED | Role.METHOD] = "adamw"
    """What takes the local steps: adamw, or plain sgd, for methods whose theory assumes it. Source: LoRA paper."""
    moments: Annotated[MomentsRule, Role.BOUNDED | Role.METHOD] = "keep"
    """AdamW's moments, when a mix has replaced the adapter that they are of: keep, or reset them in every round.
    Source: our bench on the tiny model."""
    proximal: Annotated[float, NOT_NEGATIVE, Role.BOUNDED | Role.METHOD] = 0.0
    """Pull toward where the round began: adds proximal * (x - x_start) to each gradient; 0 = none. Source:
    FedProx (arXiv 1812.06127), which tries 0.001 to 1; it pays where peers' texts differ much."""
    weight_decay: Annotated[float, NOT_NEGATIVE, Role.BOUNDED | Role.METHOD] = 0.0
    """Weight decay. Source: LoRA paper's setting for short runs."""
    max_grad_norm: Annotated[float, POSITIVE, Role.BOUNDED | Role.METHOD] = 1.0
    """Gradient clipping. Source: Hugging Face Trainer default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """Learning by trial (--task agent): in which environments, and how much of it from others' answers."""

    tasks: Annotated[tuple[str, ...], Role.OWN, EVERYDAY] = ()
    """Environments to practice in, separated by commas: reverse, sort, shift, swap, rotate, count, except, sum, grid,
    lookup, or a class of your own as module:Class. Each peer may have others."""
    eval_tasks: Annotated[tuple[str, ...], Role.OWN] = ()
    """Environments that are only measured, never practiced in: they count in "all"."""
    own: Annotated[int, POSITIVE, Role.BOUNDED | Role.METHOD] = 4
    """Questions of our own environments a step, each answered --group times. Source: SAPO (arXiv 2509.08721), where
    half own and half external does best."""
    external: Annotated[int, NOT_NEGATIVE, Role.BOUNDED | Role.METHOD] = 4
    """As many verified answers of others are learned a step as so many groups have; 0 = none. More of them cost
    accuracy at one's own tasks. Source: SAPO, as --own."""
    group: Annotated[int, AT_LEAST_2, Role.BOUNDED | Role.METHOD] = 8
    """Answers to each question, which are judged by one another. Source: our measurements on toy tasks."""
    updates: Annotated[int, POSITIVE, Role.BOUNDED | Role.METHOD] = 1
    """Optimizer steps on each step's answers; beyond the first, probabilities that moved too far are clipped. Source:
    rl-swarm, where it is 1."""
