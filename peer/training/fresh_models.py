"""Models that nobody has trained yet: drawn once from a configuration and the run's seed, the same bytes everywhere.

A configuration is one of ``SIZES`` or a file as transformers writes it (config.json); only architectures of
``DECODERS`` are built, with the code of transformers itself. The tokenizer is one of bytes, or lies in a folder. All
peers of a run need equal models and tokenizers: both digests stand in the run manifest, so that who was given another
file is refused, not mixed. Numbers are drawn in a way that no processor's own arithmetic has a say in
(``PortableNormals``). What is made lies in the cache, as aliases do (``base_models.py``).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gossip.errors import LocalError
from peer.training import libraries
from peer.training.base_models import ModelSource, cache_folder
from peer.training.frames import Progress
from peer.training.libraries import Tokenizer
from peer.training.model_making import make_in_process, make_once, serve, silent
from peer.training.tiny_model import byte_tokenizer

VERSION = 1
"""Goes up when the same request makes other bytes."""
MODULE = "peer.training.fresh_models"
"""What the process runs that makes one."""
BYTES = "bytes"
"""The tokenizer of 256 bytes."""
CONFIG_BYTES_MAX = 1 << 20
"""So much of a configuration's file is read; those of transformers have a few kilobytes. Source: ours."""
UNIFORMS = 12
"""So many uniform numbers make one normal number: their sum has a variance of 1 (Irwin-Hall)."""

SIZES: Mapping[str, Mapping[str, Any]] = {
    "nano": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    "micro": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    "mini": {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
}
"""Configurations by name: 0.16, 3.2 and 19 million parameters with the bytes' tokenizer. Shapes as of Llama: an
inner width of 8/3 of the outer one (arXiv 2302.13971); sizes that learn something on a CPU in minutes, an hour, a
night. To add one: a line here."""

DECODERS = ("gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi", "phi3", "qwen2", "qwen3", "smollm3")
"""Architectures that a configuration's file may name: decoders of text that transformers builds without code of a
repository. Source: those that we have built and trained a step of."""

REFUSED_KEYS = ("auto_map", "quantization_config")
"""Keys that no configuration's file may have: they name code of others, or weights that cannot be trained whole."""


@dataclass(frozen=True, slots=True)
class FreshModel:
    """What a model is made from; equal ones give equal bytes.

    Attributes:
        config: of transformers, without what the tokenizer says.
        tokenizer: ``bytes``, or a folder.
        seed: of the weights.
    """

    config: Mapping[str, Any]
    tokenizer: str
    seed: int


class PortableNormals(TorchFunctionMode):
    """Draws normal numbers as sums of uniform ones, which every processor adds to the same bits.

    ``Tensor.normal_`` takes logarithms and cosines, whose last bits depend on the processor's instructions; peers must
    begin with equal weights to be of one run. The largest number is then 6 standard deviations from the mean.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run what torch was asked for, but for ``normal_``."""
        if func is torch.Tensor.normal_:
            return self._normal(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _normal(
        values: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: torch.Generator | None = None
    ) -> Tensor:
        drawn = torch.zeros(values.shape)
        for _ in range(UNIFORMS):
            drawn += torch.rand(values.shape, generator=generator)
        return values.copy_((drawn - UNIFORMS / 2) * std + mean)


def resolve(from_scratch: str, tokenizer: str, seed: int, progress: Progress | None = None) -> ModelSource:
    """Return where a fresh model lies on disk, making it first if need be; takes seconds.

    Args:
        from_scratch: a name of ``SIZES``, or the path of a configuration's file.
        tokenizer: ``bytes``, or a folder that has one.
        seed: of the run.

    Raises:
        LocalError: the file or the folder cannot be used.
    """
    report = progress or silent
    config = config_of(from_scratch)
    key = _key(config, _tokenizer_identity(tokenizer), seed)
    name = from_scratch if from_scratch in SIZES else Path(from_scratch).stem
    folder = cache_folder() / "models" / f"fresh-{name}-{key}"
    request = json.dumps(asdict(FreshModel(config, tokenizer, seed)))
    make_once(
        folder, lambda partial: make_in_process(MODULE, (request,), from_scratch, partial, report), report
    )
    return ModelSource(f"{name} from scratch", folder, str(folder))


def config_of(from_scratch: str) -> dict[str, Any]:
    """Return the configuration that ``--from-scratch`` names.

    Raises:
        LocalError: there is none, or none that is built here.
    """
    if from_scratch in SIZES:
        return dict(SIZES[from_scratch])
    path = Path(from_scratch).expanduser()
    problem = f"--from-scratch {from_scratch}"
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(CONFIG_BYTES_MAX))
    except OSError as error:
        raise LocalError(
            f"{problem}: no size of that name ({', '.join(SIZES)}), and no file: {error.strerror}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise LocalError(
            f"{problem}: no configuration of a model, which is JSON as transformers writes it: {error}"
        ) from error
    if not isinstance(config, dict) or config.get("model_type") not in DECODERS:
        found = config.get("model_type") if isinstance(config, dict) else None
        raise LocalError(f"{problem}: its model_type is {found!r}; built here are {', '.join(DECODERS)}")
    if refused := [key for key in REFUSED_KEYS if key in config]:
        raise LocalError(
            f"{problem}: {', '.join(refused)} cannot be followed for a model that begins untrained: leave it out"
        )
    return config


def make(fresh: FreshModel, folder: Path, progress: Progress) -> None:
    """Write model and tokenizer into ``folder``.

    Raises:
        LocalError: transformers refuses the configuration, or its vocabulary is smaller than the tokenizer's.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    libraries.silence()
    torch.set_num_threads(1)
    progress("convert", None)
    tokenizer = byte_tokenizer() if fresh.tokenizer == BYTES else _tokenizer_in(Path(fresh.tokenizer))
    wanted = {"vocab_size": len(tokenizer), **fresh.config}
    if wanted["vocab_size"] < len(tokenizer):
        raise LocalError(
            f"--from-scratch: the configuration has {wanted['vocab_size']} tokens, --tokenizer {fresh.tokenizer} "
            f"{len(tokenizer)}: leave vocab_size out, so that it follows the tokenizer"
        )
    for role in ("bos", "eos", "pad"):
        wanted[f"{role}_token_id"] = getattr(tokenizer, f"{role}_token_id")
    try:
        config = AutoConfig.for_model(wanted.pop("model_type"), **wanted)
        torch.manual_seed(fresh.seed)
        with PortableNormals():
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # untyped there
                config, dtype=torch.float32, trust_remote_code=False
            )
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError, StrictDataclassError) as error:
        raise LocalError(f"--from-scratch: transformers cannot build this configuration: {error}") from error
    progress("save", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer_in(folder: Path) -> Tokenizer:
    try:
        return libraries.load_tokenizer(folder)
    except (OSError, ValueError, KeyError) as error:
        raise LocalError(f"--tokenizer {folder}: cannot load a tokenizer from there: {error}") from error


def _tokenizer_identity(tokenizer: str) -> str:
    """Return what two tokenizers differ in, as text: a digest of the folder's small files.

    Raises:
        LocalError: there is no such folder.
    """
    if tokenizer == BYTES:
        return BYTES
    folder = Path(tokenizer).expanduser()
    files = (
        sorted(folder.glob("*token*")) + sorted(folder.glob("*vocab*")) + sorted(folder.glob("merges.txt"))
    )
    if not files:
        raise LocalError(
            f"--tokenizer {tokenizer}: neither {BYTES} nor a folder with a tokenizer's files, such as tokenizer.json"
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _key(config: Mapping[str, Any], tokenizer: str, seed: int) -> str:
    text = json.dumps([VERSION, config, tokenizer, seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main(arguments: list[str]) -> int:
    """Make a model in a folder; see ``model_making.serve``."""
    request, partial = arguments
    fresh = FreshModel(**json.loads(request))
    return serve(partial, lambda folder, progress: make(fresh, folder, progress))


if __name__ == "__main__":
    # Under -m this file is __main__; the maker must raise the LocalError of the one imported by others.
    from peer.training.fresh_models import main as main_of_package

    sys.exit(main_of_package(sys.argv[1:]))
