"""Kinds of adapter: from our configuration and a base model to what peft builds, which tensors travel, and what
others load.

Every kind trains the very tensors that it saves, so that the mean of peers' files is the mean of what they learned.
Kinds for which that cannot be so are refused by name in ``config.py``. This file meets peft and torch modules; it
knows nothing of optimizers, data or peers. The catalogue stands at the foot.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.wire import PAYLOAD_BYTES_MAX
from peer.config import PeerConfig
from peer.training import lora_xs, tasks
from peer.training.base_models import ModelSource
from peer.training.frames import LABELS_FILE, Export

EMBEDDINGS = "prompt_embeddings"
"""The one name under which peft saves a learned prompt or prefix."""

PREFIX_SCALE = 0.02
"""Standard deviation of a prefix's first keys and values. Source: our bench on SmolLM2 (base 4.85 nats): peft's 1
starts at 11.76 nats, 0.3 at 5.99, 0.02 at 5.79; 0 starts at 5.77, but all virtual tokens would then stay alike."""


COPIED = (".json", ".jinja", ".model", ".txt")
"""Endings of a model folder's files that make its tokenizer. Source: what ``base_models.py`` fetches."""


def ignore_remarks() -> None:
    """Silence what peft says of choices made here on purpose; nothing a user can act on."""
    for remark in (
        "Specified to not (save|load) vera_A",
        "Unsupported layer type .*Norm",
        "Position ids are not supported for parameter efficient tuning",  # generating after a prompt: it counts them
    ):
        warnings.filterwarnings("ignore", message=remark)


def attach(config: PeerConfig, base: Any) -> Any:
    """Return ``base`` with its adapter on it, ready to be trained; new values are drawn from torch's generator.

    Raises:
        LocalError: the model has no such module or layer, or the kind does not suit it.
        ValueError: peft refuses; says why.
    """
    peft_config = ADAPTERS[config.model.adapter](config, base)
    if peft_config is None:
        return base
    if config.model.labels:  # peft then trains and saves the heads it knows of; the others it must be told
        peft_config.task_type = tasks.TASKS[config.model.task].peft_type
        peft_config.modules_to_save = sorted(set(tasks.head_modules(base)) - set(SEQ_CLS_HEAD_NAMES)) or None
    model = get_peft_model(base, peft_config)
    if config.model.adapter == "prefix-tuning":
        _begin_small(model)
    elif config.model.adapter == "lora-xs":
        _fix_factors(model)
    return model


@torch.no_grad()
def _begin_small(model: Any) -> None:
    """Make a random prefix small, so that it does not begin by drowning what the model knows."""
    model.prompt_encoder[model.active_adapter].embedding.weight.mul_(PREFIX_SCALE)


@torch.no_grad()
def _fix_factors(model: Any) -> None:
    """Put the base weights' singular vectors in the place of LoRA's factors, with a core to train between them."""
    for _, layer in _lora_layers(model):
        weight, name = layer.get_base_layer().weight, model.active_adapter
        basis, down = lora_xs.factors(weight, layer.r[name])
        layer.lora_A[name].weight.copy_(down)
        layer.lora_A[name].weight.requires_grad_(False)
        layer.lora_B[name] = lora_xs.CoreFactor(basis)


def _lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _is_core(model: Any) -> bool:
    return any(isinstance(module, lora_xs.CoreFactor) for module in model.modules())


def trained_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are trained, under the names of files.

    Raises:
        LocalError: the kind saves other tensors than it trains.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not isinstance(model, PeftModel):
        return trained
    tensors: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    if _is_core(model):
        tensors = {
            name.replace(".lora_B.core", lora_xs.CORE): tensor
            for name, tensor in tensors.items()
            if not name.endswith(lora_xs.DOWN)
        }
    parameters = {parameter.data_ptr(): parameter for parameter in trained.values()}
    # peft saves a copy of a prompt. Without an encoder in between, it is a copy of the one trained tensor.
    if set(tensors) == {EMBEDDINGS} and len(parameters) == 1:
        (parameter,) = parameters.values()
        if torch.equal(tensors[EMBEDDINGS].cpu(), parameter.detach().cpu()):
            return {EMBEDDINGS: parameter}
    places = {tensor.data_ptr() for tensor in tensors.values()}
    if places != set(parameters) or len(places) != len(tensors):
        raise LocalError("this kind of adapter trains other tensors than it saves: it cannot be mixed")
    return {name: parameters[tensor.data_ptr()] for name, tensor in tensors.items()}


def _frozen_factors(model: Any) -> dict[str, torch.Tensor]:
    """Return A0 and B0 of every core, under the names that LoRA's pair has in files; empty without cores."""
    if not _is_core(model):
        return {}
    found = {}
    for name, layer in _lora_layers(model):
        found[name + lora_xs.DOWN] = layer.lora_A[model.active_adapter].weight.detach()
        found[name + lora_xs.UP] = layer.lora_B[model.active_adapter].basis
    return found


def frozen_digest(model: Any) -> str:
    """Return SHA-256 (hex) of what peers derive or draw alike and never send; "" without any.

    That is VeRA's random projections, and the outer factors of lora-xs.
    """
    found = {name: buffer for name, buffer in model.named_buffers() if ".vera_" in name}
    found |= _frozen_factors(model)
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(f"{name} {tuple(found[name].shape)}".encode())
        digest.update(found[name].cpu().float().contiguous().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest() if found else ""


# -- what others load


def export(model: Any, source: ModelSource, labels: Sequence[str] = ()) -> Export:
    """Return how the values of ``model`` become a folder that peft, or transformers alone, loads.

    Args:
        labels: of a classification, in the order of its head's outputs: adapter_config.json has no place for them.
    """
    told = {LABELS_FILE: json.dumps(list(labels), ensure_ascii=False)} if labels else {}
    if not isinstance(model, PeftModel):
        kept = [
            str(file)
            for file in sorted(source.folder.iterdir())
            if file.suffix in COPIED and file.name != "config.json" and not file.name.endswith(".index.json")
        ]
        return Export("model.safetensors", {"config.json": _model_config(model, source), **told}, tuple(kept))
    frozen = _frozen_factors(model)
    return Export(
        "adapter_model.safetensors",
        {"adapter_config.json": _adapter_config(model.active_peft_config, source), **told},
        frozen=AdapterState.from_tensors(frozen) if frozen else None,
    )


def _model_config(model: Any, source: ModelSource) -> str:
    """Return config.json of a whole model in float32, and where it came from, so that it can be compared with that."""
    written = model.config.to_diff_dict()
    written.pop("use_cache", None)  # off while training; whoever loads the model wants the default
    written |= {"architectures": [type(model).__name__], "dtype": "float32"}
    return json.dumps({**written, "base_model_name_or_path": source.reference}, indent=2, sort_keys=True)


def _adapter_config(peft_config: PeftConfig, source: ModelSource) -> str:
    """Return adapter_config.json as peft writes it, with lists in a fixed order."""
    peft_config = copy.copy(peft_config)  # the model reads its own, which is being trained
    peft_config.base_model_name_or_path = source.reference
    peft_config.inference_mode = True
    with tempfile.TemporaryDirectory() as folder:
        peft_config.save_pretrained(folder)
        written = json.loads((Path(folder) / "adapter_config.json").read_text())
    for modules in ("target_modules", "feedforward_modules", "modules_to_save"):
        if isinstance(written.get(modules), list):
            written[modules].sort()
    return json.dumps(written, indent=2, sort_keys=True)


# -- which modules


def _layers(config: PeerConfig, base: Any) -> list[int] | None:
    """Read "18-29" or "0,5,7-9"; None for the empty text (all layers)."""
    text = config.model.lora_layers
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
    targets = tasks.target_modules(config, base)
    if targets == ("all-linear",):
        head = base.get_output_embeddings()
        heads = tasks.head_modules(base) if config.model.labels else []
        return {
            name: module
            for name, module in linear.items()
            if module is not head and name.partition(".")[0] not in heads
        }
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise LocalError(
                f"lora_target_modules: the model has no linear module {target!r}; it has "
                f"{', '.join(sorted({name.rpartition('.')[2] for name in linear}))}. Use some of these, or all-linear."
            )
    endings = tuple(f".{target}" for target in targets)
    return {name: module for name, module in linear.items() if f".{name}".endswith(endings)}


def _modules(config: PeerConfig, base: Any) -> dict[str, Any]:
    """Return what the kinds that know of layers are told of modules."""
    _linear(config, base)  # refuses names that the model does not have
    targets = tasks.target_modules(config, base)
    return {
        "task_type": "CAUSAL_LM",
        "target_modules": "all-linear" if targets == ("all-linear",) else list(targets),
        "layers_to_transform": _layers(config, base),
    }


def _chosen(names: set[str], layers: list[int] | None) -> list[str] | str:
    """Return module names, or the pattern that keeps them to some layers, for kinds that know of none."""
    if layers is None or not names:
        return sorted(names)
    numbers, endings = "|".join(map(str, layers)), "|".join(map(re.escape, sorted(names)))
    return rf".*\.(?:{numbers})\.(?:.*\.)?(?:{endings})"


def _without_dropout(config: PeerConfig) -> None:
    if config.model.lora_dropout:
        raise LocalError(
            f"adapter {config.model.adapter} has no dropout on its input: leave lora_dropout at 0, or use lora, "
            "rslora, dora or vera"
        )


# -- the kinds


def _lora(config: PeerConfig, base: Any, **kind: bool) -> LoraConfig:
    return LoraConfig(
        r=config.model.lora_r,
        lora_alpha=config.model.lora_alpha,
        lora_dropout=config.model.lora_dropout,
        **_modules(config, base),
        **kind,
    )


def _rslora(config: PeerConfig, base: Any) -> LoraConfig:
    return _lora(config, base, use_rslora=True)


def _dora(config: PeerConfig, base: Any) -> LoraConfig:
    return _lora(config, base, use_dora=True)


def _lora_xs(config: PeerConfig, base: Any) -> LoraConfig:
    """Only an r x r core between singular vectors of the base weight (arXiv 2405.17604, 2502.15436)."""
    if config.model.load_in_4bit:
        raise LocalError("adapter lora-xs needs whole weights: leave load_in_4bit off, or use lora")
    for name, module in _linear(config, base).items():
        if config.model.lora_r > min(module.in_features, module.out_features):
            raise LocalError(
                f"lora_r {config.model.lora_r} is more than the rank of {name}, {tuple(module.weight.shape)}; lower it"
            )
    return _lora(config, base)


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
    if config.model.load_in_4bit:
        raise LocalError("adapter loha needs whole weights: leave load_in_4bit off, or use lora")
    return LoHaConfig(r=config.model.lora_r, alpha=config.model.lora_alpha, **_modules(config, base))


def _vera(config: PeerConfig, base: Any) -> VeraConfig:
    """Two learned vectors a module around random projections that all share (arXiv 2310.11454)."""
    with warnings.catch_warnings():
        ignore_remarks()
        return VeraConfig(
            r=config.model.lora_r,
            vera_dropout=config.model.lora_dropout,
            projection_prng_key=config.run.seed,
            save_projection=False,  # drawn again from the key, by us and by whoever loads the file
            **_modules(config, base),
        )


def _oft(config: PeerConfig, base: Any) -> OFTConfig:
    """Block-diagonal rotations of the input (arXiv 2306.07280)."""
    _without_dropout(config)
    block = config.model.oft_block_size
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
        raise LocalError(
            "adapter layernorm: the model has no LayerNorm or RMSNorm with a scale; use lora or ia3"
        )
    if set(norms.values()) != {torch.float32}:
        # peft trains copies in the base's precision; near 1, bfloat16 rounds steps below 0.004 away
        raise LocalError(
            "adapter layernorm needs norms in float32: use --dtype float32 (and no load_in_4bit)"
        )
    return LNTuningConfig(task_type="CAUSAL_LM", target_modules=_chosen(set(norms), _layers(config, base)))


def _virtual_tokens(config: PeerConfig, base: Any) -> dict[str, Any]:
    _without_dropout(config)
    if config.model.labels:
        raise LocalError(
            f"adapter {config.model.adapter} is for text: for a classification use lora, or another kind"
        )
    if config.model.lora_layers:
        raise LocalError(f"adapter {config.model.adapter} acts on the whole model: leave lora_layers empty")
    longest = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and config.training.max_length + config.model.virtual_tokens > longest:
        raise LocalError(
            f"max_length {config.training.max_length} and virtual_tokens {config.model.virtual_tokens} together exceed "
            f"the model's {longest} positions"
        )
    return {"task_type": "CAUSAL_LM", "num_virtual_tokens": config.model.virtual_tokens}


def _prompt_tuning(config: PeerConfig, base: Any) -> PromptTuningConfig:
    """Learned embeddings before the text (arXiv 2104.08691), begun as words of the vocabulary (its section 3.2)."""
    return PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **_virtual_tokens(config, base))


def _prefix_tuning(config: PeerConfig, base: Any) -> PrefixTuningConfig:
    """Learned keys and values before the text in every layer (arXiv 2101.00190), without its encoder.

    With the encoder, what is saved is computed and what is trained is not saved: it could not be mixed.
    """
    return PrefixTuningConfig(prefix_projection=False, **_virtual_tokens(config, base))


def _full(config: PeerConfig, base: Any) -> None:
    """All weights of a small model, in float32 (in bfloat16, steps below 0.4 % of a weight would be rounded away)."""
    _without_dropout(config)
    if config.model.load_in_4bit or config.model.dtype not in ("auto", "float32"):
        raise LocalError(
            "adapter full trains in float32: leave load_in_4bit off and dtype at auto or float32"
        )
    if config.model.lora_layers:
        raise LocalError("adapter full trains the whole model: leave lora_layers empty")
    values = sum(parameter.numel() for parameter in base.parameters())
    if 4 * values > PAYLOAD_BYTES_MAX:
        raise LocalError(
            f"adapter full: all {values:,} weights would travel, {4 * values >> 20} MiB in float32; at most "
            f"{PAYLOAD_BYTES_MAX >> 20} MiB do. Use a smaller model, or lora."
        )
    for parameter in base.parameters():
        parameter.data = parameter.data.to(torch.float32, copy=True)  # no view of the file any more
        parameter.requires_grad_(True)


ADAPTERS: dict[str, Callable[[PeerConfig, Any], PeftConfig | None]] = {
    "lora": _lora,
    "rslora": _rslora,
    "dora": _dora,
    "lora-xs": _lora_xs,
    "ia3": _ia3,
    "loha": _loha,
    "vera": _vera,
    "oft": _oft,
    "prompt-tuning": _prompt_tuning,
    "prefix-tuning": _prefix_tuning,
    "layernorm": _layernorm,
    "full": _full,
}
"""Kinds of adapter: (config, base model) -> peft config, or None if the model itself is trained. A new one must train
the very tensors that it saves, and stand in ``ADAPTER_KINDS`` of ``config.py``, which imports nothing heavy."""
