"""Kinds of adapter: from our configuration and a base model to what peft builds on it.

Kinds that cannot be mixed are refused by name in ``config.py``. This file meets peft and torch modules; it knows
nothing of optimizers, data or peers. Which modules are adapted, ``adapter_modules.py`` says, and which tensors travel,
``adapter_tensors.py``. The catalogue stands at the foot.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD

from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.learning_options import ModelOptions
from peer.training import lora_xs, task, tasks
from peer.training.adapter_modules import in_layers, layers, linear_modules, module_options
from peer.training.adapter_tensors import lora_layers
from peer.training.libraries import BaseModel, ignore_remarks

PREFIX_SCALE = 0.02
"""Standard deviation of a prefix's first keys and values. Source: our bench on SmolLM2 (base 4.85 nats): peft's 1
starts at 11.76 nats, 0.3 at 5.99, 0.02 at 5.79; 0 starts at 5.77, but all virtual tokens would then stay alike.

At a learning rate of 0.1, 8 virtual tokens learn from 5.98 to 3.90 nats in 40 steps of 4 rows of German (0.3 is too
much: 5.93 after 10). Keys and values that the base computes of words start at 5.19 and come to 3.76 (at 0.03); but its
arithmetic differs from machine to machine, and peers must begin alike to the bit."""


class AdapterKind(NamedTuple):
    """One line of the catalogue.

    Attributes:
        rate: its usual learning rate, with AdamW: where a trial begins to look, and what is taken where there is none.
        configure: (configuration, base model) -> what peft is told; None if the base model itself is trained. Raises
            ``LocalError`` where the kind does not suit model or settings.
        begin: gives the adapter that peft has put onto the model its first values, where they are not peft's.
    """

    rate: float
    configure: Callable[[PeerConfig, BaseModel], PeftConfig | None]
    begin: Callable[[BaseModel], None] | None = None


def attach(config: PeerConfig, base: BaseModel) -> BaseModel:
    """Return ``base`` with its adapter on it, ready to be trained; new values are drawn from torch's generator.

    Raises:
        LocalError: the model has no such module or layer, or the kind does not suit it.
        ValueError: peft refuses; says why.
    """
    kind, objective = ADAPTERS[config.model.adapter], tasks.TASKS[config.model.task]
    peft_config = kind.configure(config, base)
    if peft_config is None:
        return base
    peft_config.task_type = objective.peft_type
    if heads := objective.head_modules(
        base
    ):  # peft trains and saves those it knows of; of the others it must be told
        unknown = sorted(set(heads) - set(SEQ_CLS_HEAD_NAMES)) or None
        peft_config.modules_to_save = unknown  # type: ignore[attr-defined]  # a field of each kind with modules
    model = get_peft_model(base, peft_config)
    if kind.begin is not None:
        kind.begin(model)
    return model


@torch.no_grad()
def _begin_small(model: BaseModel) -> None:
    """Make a random prefix small, so that it does not begin by drowning what the model knows."""
    model.prompt_encoder[model.active_adapter].embedding.weight.mul_(PREFIX_SCALE)


@torch.no_grad()
def _begin_with_cores(model: BaseModel) -> None:
    """Put the base weights' singular vectors in the place of LoRA's factors, with a core to train between them."""
    name = model.active_adapter
    for _, layer in lora_layers(model):
        basis, down = lora_xs.factors(layer.get_base_layer().weight, layer.r[name])
        layer.lora_A[name].weight.copy_(down)
        layer.lora_A[name].weight.requires_grad_(False)
        layer.lora_B[name] = lora_xs.CoreFactor(basis)


def _refuse_dropout(model: ModelOptions) -> None:
    if model.lora_dropout:
        raise LocalError(
            f"adapter {model.adapter} has no dropout on its input: leave lora_dropout at 0, or use lora, "
            "rslora, dora or vera"
        )


def _lora(
    config: PeerConfig, base: BaseModel, *, use_rslora: bool = False, use_dora: bool = False
) -> LoraConfig:
    return LoraConfig(
        r=config.model.lora_r,
        lora_alpha=config.model.lora_alpha,
        lora_dropout=config.model.lora_dropout,
        use_rslora=use_rslora,
        use_dora=use_dora,
        **module_options(config.model, base),
    )


def _rslora(config: PeerConfig, base: BaseModel) -> LoraConfig:
    return _lora(config, base, use_rslora=True)


def _dora(config: PeerConfig, base: BaseModel) -> LoraConfig:
    return _lora(config, base, use_dora=True)


def _lora_xs(config: PeerConfig, base: BaseModel) -> LoraConfig:
    """Only an r x r core between singular vectors of the base weight (arXiv 2405.17604, 2502.15436)."""
    if config.model.load_in_4bit:
        raise LocalError("adapter lora-xs needs whole weights: leave load_in_4bit off, or use lora")
    for name, module in linear_modules(config.model, base).items():
        if config.model.lora_r > min(module.in_features, module.out_features):
            raise LocalError(
                f"lora_r {config.model.lora_r} is more than the rank of {name}, {tuple(module.weight.shape)}; lower it"
            )
    return _lora(config, base)


def _ia3(config: PeerConfig, base: BaseModel) -> IA3Config:
    """One factor per output, or per input of the feed-forward's last module (arXiv 2205.05638)."""
    _refuse_dropout(config.model)
    names = {name.rpartition(".")[2] for name in linear_modules(config.model, base)}
    last = {name.rpartition(".")[2] for name in FEEDFORWARD.get(base.config.model_type, ())}
    numbers = layers(config.model, base)
    return IA3Config(
        task_type="CAUSAL_LM",
        target_modules=in_layers(names, numbers),
        feedforward_modules=in_layers(names & last, numbers),
    )


def _loha(config: PeerConfig, base: BaseModel) -> LoHaConfig:
    """Elementwise product of two low-rank matrices (arXiv 2108.06098): rank up to r squared."""
    _refuse_dropout(config.model)
    if config.model.load_in_4bit:
        raise LocalError("adapter loha needs whole weights: leave load_in_4bit off, or use lora")
    return LoHaConfig(
        r=config.model.lora_r, alpha=config.model.lora_alpha, **module_options(config.model, base)
    )


def _vera(config: PeerConfig, base: BaseModel) -> VeraConfig:
    """Two learned vectors a module around random projections that all share (arXiv 2310.11454)."""
    with warnings.catch_warnings():
        ignore_remarks()
        return VeraConfig(
            r=config.model.lora_r,
            vera_dropout=config.model.lora_dropout,
            projection_prng_key=config.run.seed,
            save_projection=False,  # drawn again from the key, by us and by whoever loads the file
            **module_options(config.model, base),
        )


def _oft(config: PeerConfig, base: BaseModel) -> OFTConfig:
    """Block-diagonal rotations of the input (arXiv 2306.07280)."""
    _refuse_dropout(config.model)
    block = config.model.oft_block_size
    for name, module in linear_modules(config.model, base).items():
        if module.in_features % block:
            raise LocalError(
                f"oft_block_size {block} does not divide the {module.in_features} inputs of {name}; use a divisor"
            )
    return OFTConfig(r=0, oft_block_size=block, **module_options(config.model, base))


def _layernorm(config: PeerConfig, base: BaseModel) -> LNTuningConfig:
    """The scales of the model's own norms (arXiv 2312.11420)."""
    _refuse_dropout(config.model)
    norms = {
        name.rpartition(".")[2]: module.weight.dtype
        for name, module in base.named_modules()
        if type(module).__name__.endswith(("LayerNorm", "RMSNorm")) and hasattr(module, "weight")
    }
    if not norms:
        raise LocalError(
            "adapter layernorm: the model has no LayerNorm or RMSNorm with a scale; use lora or ia3"
        )
    if set(norms.values()) != {torch.float32}:
        # peft trains copies in the base's precision; near 1, bfloat16 rounds steps below 0.004 away
        raise LocalError(
            "adapter layernorm needs norms in float32: use --dtype float32 (and no load_in_4bit)"
        )
    return LNTuningConfig(
        task_type="CAUSAL_LM", target_modules=in_layers(set(norms), layers(config.model, base))
    )


def _virtual_tokens(config: PeerConfig, base: BaseModel) -> dict[str, Any]:
    model, max_length = config.model, config.training.max_length
    _refuse_dropout(model)
    if model.labels:
        raise LocalError(
            f"adapter {model.adapter} is for text: for a classification use lora, or another kind"
        )
    if model.lora_layers:
        raise LocalError(f"adapter {model.adapter} acts on the whole model: leave lora_layers empty")
    longest = task.positions(base)
    if longest is not None and max_length + model.virtual_tokens > longest:
        raise LocalError(
            f"max_length {max_length} and virtual_tokens {model.virtual_tokens} together exceed "
            f"the model's {longest} positions"
        )
    return {"task_type": "CAUSAL_LM", "num_virtual_tokens": model.virtual_tokens}


def _prompt_tuning(config: PeerConfig, base: BaseModel) -> PromptTuningConfig:
    """Learned embeddings before the text (arXiv 2104.08691), begun as words of the vocabulary (its section 3.2)."""
    return PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **_virtual_tokens(config, base))


def _prefix_tuning(config: PeerConfig, base: BaseModel) -> PrefixTuningConfig:
    """Learned keys and values before the text in every layer (arXiv 2101.00190), without its encoder.

    With the encoder, what is saved is computed and what is trained is not saved: it could not be mixed.
    """
    return PrefixTuningConfig(prefix_projection=False, **_virtual_tokens(config, base))


def _full(config: PeerConfig, base: BaseModel) -> None:
    """All weights of a small model, in float32 (in bfloat16, steps below 0.4 % of a weight would be rounded away)."""
    _refuse_dropout(config.model)
    if config.model.load_in_4bit or config.model.dtype not in ("auto", "float32"):
        raise LocalError(
            "adapter full trains in float32: leave load_in_4bit off and dtype at auto or float32"
        )
    if config.model.lora_layers:
        raise LocalError("adapter full trains the whole model: leave lora_layers empty")
    for parameter in base.parameters():
        parameter.data = parameter.data.to(torch.float32, copy=True)  # no view of the file any more
        parameter.requires_grad_(True)


FEW = 2e-2
"""Rate of kinds that train a few scales or vectors a module. Source: our tests of the kinds on the tiny model; the IA3
paper (arXiv 2205.05638) takes 3e-3 with Adafactor, the VeRA paper (2310.11454) 3e-3 to 2e-2."""

ADAPTERS: dict[str, AdapterKind] = {
    # Our bench on the demo; the paper (arXiv 2106.09685) takes 2e-4 in long runs.
    "lora": AdapterKind(2e-3, _lora),
    "rslora": AdapterKind(2e-3, _rslora),  # as lora
    "dora": AdapterKind(2e-3, _dora),  # as lora
    "lora-xs": AdapterKind(5e-2, _lora_xs, _begin_with_cores),  # our bench on the demo
    "ia3": AdapterKind(FEW, _ia3),
    "loha": AdapterKind(5e-3, _loha),  # our tests of the kinds
    "vera": AdapterKind(FEW, _vera),
    "oft": AdapterKind(5e-3, _oft),  # our tests of the kinds
    # Our tests; the paper (arXiv 2104.08691) takes 0.3 with Adafactor.
    "prompt-tuning": AdapterKind(5e-2, _prompt_tuning),
    "prefix-tuning": AdapterKind(1e-1, _prefix_tuning, _begin_small),  # our bench, see PREFIX_SCALE
    "layernorm": AdapterKind(FEW, _layernorm),
    "full": AdapterKind(5e-3, _full),  # our tests, with a small model
}
"""Kinds of adapter by name. A new one must train the very tensors that it saves, and stand in ``ADAPTER_KINDS`` of
``learning_options.py``, which imports nothing heavy."""
