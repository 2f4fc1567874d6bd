"""What we use of the objects of transformers and peft, as types, and their remarks silenced.

Nothing heavy is imported until a function here is called, so that any file may name these types.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

BaseModel: TypeAlias = Any
"""A ``PreTrainedModel`` of transformers, or a ``PeftModel`` around one. Which modules it has, and under which names, is
known to its architecture alone, and ``nn.Module`` answers every attribute with ``Tensor | Module``; so a type would
only have to be cast away wherever a module is looked at."""


class Tokenizer(Protocol):
    """What we use of a tokenizer of transformers (``PreTrainedTokenizerBase``)."""

    @property
    def chat_template(self) -> str | None:
        """Jinja template of a chat; None if the model knows none."""

    @property
    def bos_token_id(self) -> int | None:
        """Token before a text."""

    @property
    def eos_token_id(self) -> int | None:
        """Token after a text."""

    @property
    def pad_token_id(self) -> int | None:
        """Token that fills up a batch."""

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones aside."""

    @property
    def special_tokens_map(self) -> Mapping[str, Any]:
        """Special tokens by their role."""

    def __call__(self, text: str | Sequence[str], **options: Any) -> Mapping[str, Any]:
        """Return ``input_ids`` and what else a model takes; a list of them for a list of texts."""

    def apply_chat_template(self, conversation: Sequence[Mapping[str, str]], **options: Any) -> Any:
        """Return a chat as text or as token ids."""

    def get_vocab(self) -> dict[str, int]:
        """Return all tokens with their ids."""

    def decode(self, token_ids: Any, **options: Any) -> str:
        """Return the text of token ids."""

    def save_pretrained(self, save_directory: Any) -> Any:
        """Write the tokenizer's files into a folder."""

    def __len__(self) -> int: ...


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer whose files lie in ``folder``.

    Raises:
        OSError, ValueError, KeyError: there is none, or none that can be read.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return cast("Tokenizer", tokenizer)  # it gives most of its attributes at run time


REMARKS = (
    "Specified to not (save|load) vera_A",
    "Unsupported layer type .*Norm",
    "Position ids are not supported for parameter efficient tuning",  # generating after a prompt: it counts them
)
"""What peft says of choices made here on purpose: nothing that a user can act on."""


def ignore_remarks() -> None:
    """Let warnings pass over ``REMARKS``."""
    for remark in REMARKS:
        warnings.filterwarnings("ignore", message=remark)


def silence() -> None:
    """Keep transformers and peft from writing progress bars and remarks to the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types there
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # nor there
    # transformers warns of its own deprecated attribute, which peft reads: nothing a user can act on
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    ignore_remarks()
