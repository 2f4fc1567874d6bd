"""Kinds of adapter: from our configuration and a base model to what peft builds, and which tensors travel.

Every kind trains the very tensors that it saves, so that the mean of peers' files is the mean of what they learned.
Kinds for which that cannot be so are refused by name in ``config.py``. This file meets peft and torch modules; it
knows nothing of optimizers, data or peers. The catalogue stands at the foot.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftType,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
)
from peft.utils import get_peft_model_state_dict
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD

from gossip.errors import LocalError
from peer.config import PeerConfig

EMBEDDINGS = "prompt_embeddings"
"""The one name under which peft saves a learned prompt or prefix."""

PREFIX_SCALE = 0.02
"""Standard deviation of a prefix's first keys and values. Source: our bench on SmolLM2 (base 4.85 nats): peft's 1
starts at 11.76 nats, 0.3 at 5.99, 0.02 at 5.79; 0 starts at 5.77, but all virtual tokens would then stay alike."""


def ignore_remarks() -> None:
    """Silence what peft says of choices made here on purpose; nothing a user can act on."""
    for remark in (
        "Specified to not (save|load) vera_A",
        "Unsupported layer type .*Norm",
        "Position ids are not supported for parameter efficient tuning",  # generating after a prompt: it counts them
    ):
        warnings.filterwarnings("ignore", message=remark)


@torch.no_grad()
def settle(model: Any) -> None:
    """Make a random prefix small, so that it does not begin by drowning what the model knows."""
    if model.active_peft_config.peft_type == PeftType.PREFIX_TUNING:
        model.prompt_encoder[model.active_adapter].embedding.weight.mul_(PREFIX_SCALE)


def trained_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return the adapter's tensors under the names of files; they share memory with the parameters.

    Raises:
        LocalError: the kind saves other tensors than it trains.
    """
    tensors: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # peft saves a copy of a prompt. Without an encoder in between, it is a copy of the one trained tensor.
    if set(tensors) == {EMBEDDINGS} and len(parameters) == 1 and torch.equal(
        tensors[EMBEDDINGS].cpu(), parameters[0].detach().cpu()
    ):
        tensors = {EMBEDDINGS: parameters[0].detach()}
    if {tensor.data_ptr() for tensor in tensors.values()} != {one.data_ptr() for one in parameters}:
        raise LocalError("this kind of adapter trains other tensors than it saves: it cannot be mixed")
    return tensors


def frozen_digest(model: Any) -> str:
    """Return SHA-256 (hex) of VeRA's random projections, which peers draw alike and never send; "" without any."""
    found = {name: buffer for name, buffer in model.named_buffers() if ".vera_" in name}
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(f"{name} {tuple(found[name].shape)}".encode())
        digest.update(found[name].cpu().float().contiguous().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest() if found else ""


# -- which modules


def _layers(config: PeerConfig, base: Any) -> list[int] | None:
    """Read "18-29" or "0,5,7-9"; None for the empty text (all layers)."""
    text = config.lora_layers
    if not text:
        return None
    count = base.config.get_text_config().num_hidden_layers
    layers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            layers += range(int(first), int(last or first) + 1)
    except ValueError:
        raise LocalError(f'lora_layers must look like "18-29" or "0,5,7", not {text!r}') from None
    if not layers or max(layers) >= count:
        raise LocalError(f"lora_layers {text!r}: the model has layers 0 to {count - 1}")
    return sorted(set(layers))


def _linear(config: PeerConfig, base: Any) -> dict[str, torch.nn.Linear]:
    """Return the linear modules meant by ``lora_target_modules``, by full name; never the output head."""
    linear = {name: module for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    if config.lora_target_modules == ("all-linear",):
        head = base.get_output_embeddings()
        return {name: module for name, module in linear.items() if module is not head}
    for target in config.lora_target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise LocalError(
                f"lora_target_modules: the model has no linear module {target!r}; it has "
                f"{', '.join(sorted({name.rpartition('.')[2] for name in linear}))}. Use some of these, or all-linear."
            )
    endings = tuple(f".{target}" for target in config.lora_target_modules)
    return {name: module for name, module in linear.items() if f".{name}".endswith(endings)}


def _modules(config: PeerConfig, base: Any) -> dict[str, Any]:
    """Return what the kinds that know of layers are told of modules."""
    _linear(config, base)  # refuses names that the model does not have
    everywhere = config.lora_target_modules == ("all-linear",)
    return {
        "task_type": "CAUSAL_LM",
        "target_modules": "all-linear" if everywhere else list(config.lora_target_modules),
        "layers_to_transform": _layers(config, base),
    }


def _chosen(names: set[str], layers: list[int] | None) -> list[str] | str:
    """Return module names, or the pattern that keeps them to some layers, for kinds that know of none."""
    if layers is None or not names:
        return sorted(names)
    numbers, endings = "|".join(map(str, layers)), "|".join(map(re.escape, sorted(names)))
    return rf".*\.(?:{numbers})\.(?:.*\.)?(?:{endings})"


def _without_dropout(config: PeerConfig) -> None:
    if config.lora_dropout:
        raise LocalError(
            f"adapter {config.adapter} has no dropout on its input: leave lora_dropout at 0, or use lora, rslora, "
            "dora or vera"
        )


# -- the kinds


def _lora(config: PeerConfig, base: Any, **kind: bool) -> LoraConfig:
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        **_modules(config, base),
        **kind,
    )


def _rslora(config: PeerConfig, base: Any) -> LoraConfig:
    return _lora(config, base, use_rslora=True)


def _dora(config: PeerConfig, base: Any) -> LoraConfig:
    return _lora(config, base, use_dora=True)


def _ia3(config: PeerConfig, base: Any) -> IA3Config:
    """One factor per output, or per input of the feed-forward's last module (arXiv 2205.05638)."""
    _without_dropout(config)
    names = {name.rpartition(".")[2] for name in _linear(config, base)}
    last = {name.rpartition(".")[2] for name in FEEDFORWARD.get(base.config.model_type, ())}
    layers = _layers(config, base)
    return IA3Config(
        task_type="CAUSAL_LM",
        target_modules=_chosen(names, layers),
        feedforward_modules=_chosen(names & last, layers),
    )


def _loha(config: PeerConfig, base: Any) -> LoHaConfig:
    """Elementwise product of two low-rank matrices (arXiv 2108.06098): rank up to r squared."""
    _without_dropout(config)
    if config.load_in_4bit:
        raise LocalError("adapter loha needs whole weights: leave load_in_4bit off, or use lora")
    return LoHaConfig(r=config.lora_r, alpha=config.lora_alpha, **_modules(config, base))


def _vera(config: PeerConfig, base: Any) -> VeraConfig:
    """Two learned vectors a module around random projections that all share (arXiv 2310.11454)."""
    with warnings.catch_warnings():
        ignore_remarks()
        return VeraConfig(
            r=config.lora_r,
            vera_dropout=config.lora_dropout,
            projection_prng_key=config.seed,
            save_projection=False,  # drawn again from the key, by us and by whoever loads the file
            **_modules(config, base),
        )


def _oft(config: PeerConfig, base: Any) -> OFTConfig:
    """Block-diagonal rotations of the input (arXiv 2306.07280)."""
    _without_dropout(config)
    block = config.oft_block_size
    for name, module in _linear(config, base).items():
        if module.in_features % block:
            raise LocalError(
                f"oft_block_size {block} does not divide the {module.in_features} inputs of {name}; use a divisor"
            )
    return OFTConfig(r=0, oft_block_size=block, **_modules(config, base))


def _layernorm(config: PeerConfig, base: Any) -> LNTuningConfig:
    """The scales of the model's own norms (arXiv 2312.11420)."""
    _without_dropout(config)
    norms = {
        name.rpartition(".")[2]: module.weight.dtype
        for name, module in base.named_modules()
        if type(module).__name__.endswith(("LayerNorm", "RMSNorm")) and hasattr(module, "weight")
    }
    if not norms:
        raise LocalError("adapter layernorm: the model has no LayerNorm or RMSNorm with a scale; use lora or ia3")
    if set(norms.values()) != {torch.float32}:
        # peft trains copies in the base's precision; near 1, bfloat16 rounds steps below 0.004 away
        raise LocalError("adapter layernorm needs norms in float32: use --dtype float32 (and no load_in_4bit)")
    return LNTuningConfig(task_type="CAUSAL_LM", target_modules=_chosen(set(norms), _layers(config, base)))


def _virtual_tokens(config: PeerConfig, base: Any) -> dict[str, Any]:
    _without_dropout(config)
    if config.lora_layers:
        raise LocalError(f"adapter {config.adapter} acts on the whole model: leave lora_layers empty")
    longest = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and config.max_length + config.virtual_tokens > longest:
        raise LocalError(
            f"max_length {config.max_length} and virtual_tokens {config.virtual_tokens} together exceed the model's "
            f"{longest} positions"
        )
    return {"task_type": "CAUSAL_LM", "num_virtual_tokens": config.virtual_tokens}


def _prompt_tuning(config: PeerConfig, base: Any) -> PromptTuningConfig:
    """Learned embeddings before the text (arXiv 2104.08691), begun as words of the vocabulary (its section 3.2)."""
    return PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **_virtual_tokens(config, base))


def _prefix_tuning(config: PeerConfig, base: Any) -> PrefixTuningConfig:
    """Learned keys and values before the text in every layer (arXiv 2101.00190), without its encoder.

    With the encoder, what is saved is computed and what is trained is not saved: it could not be mixed.
    """
    return PrefixTuningConfig(prefix_projection=False, **_virtual_tokens(config, base))


ADAPTERS: dict[str, Callable[[PeerConfig, Any], PeftConfig]] = {
    "lora": _lora,
    "rslora": _rslora,
    "dora": _dora,
    "ia3": _ia3,
    "loha": _loha,
    "vera": _vera,
    "oft": _oft,
    "prompt-tuning": _prompt_tuning,
    "prefix-tuning": _prefix_tuning,
    "layernorm": _layernorm,
}
"""Kinds of adapter: (config, base model) -> peft config. A new one must train the very tensors that it saves, and
stand in ``ADAPTER_KINDS`` of ``config.py``, which imports nothing heavy."""
