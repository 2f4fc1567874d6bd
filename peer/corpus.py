"""The demo's data: dialogues in four languages out of the package chatterbot-corpus, one JSONL file each.

The demo then reads these files the way it reads a user's. The package's YAML is read as plain files; its
own code is never imported. This file knows nothing of peers or models.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Sequence
from pathlib import Path

from gossip.errors import LocalError
from peer.durable import write_atomically

LANGUAGES = ("spanish", "german", "french", "italian")
"""Languages of the demo, one per peer: each has 89 to 562 conversations."""


def write(folder: Path, languages: Sequence[str] = LANGUAGES, seed: int = 0) -> dict[str, Path]:
    """Write ``<folder>/<language>.jsonl`` for each language, rows ``{"text": dialogue}`` in seeded order.

    Returns:
        The file of each language.

    Raises:
        LocalError: the extra ``demo`` is not installed, or a language is not in the package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for language in languages:
        dialogues = _dialogues(language)
        random.Random(f"{language} {seed}").shuffle(dialogues)
        lines = [json.dumps({"text": dialogue}, ensure_ascii=False) + "\n" for dialogue in dialogues]
        files[language] = folder / f"{language}.jsonl"
        write_atomically(files[language], "".join(lines).encode())
    return files


def _dialogues(language: str) -> list[str]:
    """Return each conversation as lines of text, in the order of the package's files."""
    try:
        import yaml

        spec = importlib.util.find_spec("chatterbot_corpus")  # finds it without running it
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(name="chatterbot-corpus")
        corpus = Path(spec.submodule_search_locations[0]) / "data"
    except ModuleNotFoundError as error:
        raise LocalError(
            f"the demo's texts need the package {error.name}: pip install 'gossip-peer[demo]'"
        ) from error
    folder = corpus / language
    if not folder.is_dir():
        known = ", ".join(sorted(entry.name for entry in corpus.iterdir() if entry.is_dir()))
        raise LocalError(f"chatterbot-corpus has no language {language!r}; known: {known}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    dialogues = []
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".yml"):
            continue
        content = yaml.load(file.read_bytes(), Loader=loader)
        for conversation in content["conversations"]:
            turns = conversation if isinstance(conversation, list) else [conversation]
            text = "\n".join(str(turn).strip() for turn in turns if turn is not None).strip()
            if text:
                dialogues.append(text)
    return dialogues
