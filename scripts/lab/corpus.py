"""Texts out of packages: dialogues by language and topic (chatterbot-corpus), snippets by source (vaderSentiment).

The demo's four languages are written as one JSONL file each, and read the way a user's files are. Packages are read as
plain files; their own code is never imported. This file knows nothing of peers or models.
"""

from __future__ import annotations

import importlib.util
import json
import random
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from gossip.errors import LocalError
from peer.durable import write_atomically
from peer.training.frames import Progress
from peer.training.packages import PackageFile, fetch

LANGUAGES = ("spanish", "german", "french", "italian")
"""Languages of the demo, one per peer: each has 89 to 562 conversations."""

VADER = PackageFile(
    "vaderSentiment==0.5",
    "vaderSentiment-0.5.zip",
    "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
)
VADER_TEXTS = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
SOURCES = {
    "amazon": "amazonReviewSnippets",
    "movie": "movieReviewSnippets",
    "nyt": "nytEditorialSnippets",
    "tweet": "tweets",
}
"""Sources of the snippets by short name: 3708 to 10604 each (MIT; Hutto and Gilbert, ICWSM 2014)."""


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
        dialogues = [text for texts in topics(language).values() for text in texts]
        random.Random(f"{language} {seed}").shuffle(dialogues)
        lines = [json.dumps({"text": dialogue}, ensure_ascii=False) + "\n" for dialogue in dialogues]
        files[language] = folder / f"{language}.jsonl"
        write_atomically(files[language], "".join(lines).encode())
    return files


def sources(cache: Path, report: Progress) -> dict[str, list[str]]:
    """Return the snippets of each of ``SOURCES``, in the order of its file; fetches 2.4 MB once, into ``cache``.

    Raises:
        LocalError: the package cannot be fetched, or is not the one we know.
    """
    kept = cache / "packages"
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept) as folder:
        package = fetch(VADER, cache, Path(folder), report)
        if package.parent == Path(folder):
            package = package.rename(kept / package.name)
    texts = {}
    with (
        zipfile.ZipFile(package) as archive,
        archive.open(VADER_TEXTS) as packed,
        tarfile.open(fileobj=packed, mode="r:gz") as inner,
    ):
        for name, file in SOURCES.items():
            found = inner.extractfile(f"hutto_ICWSM_2014/{file}_GroundTruth.txt")
            assert found is not None, "its digest says that it is there"
            rows = found.read().decode("utf-8", errors="replace").split("\n")
            texts[name] = [text for row in rows if (text := row.split("\t", 2)[-1].strip())]
    return texts


def topics(language: str = "english") -> dict[str, list[str]]:
    """Return a language's conversations as lines of text, by topic: the name of the package's file.

    Raises:
        LocalError: the extra ``demo`` is not installed, or the language is not in the package.
    """
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
    texts: dict[str, list[str]] = {}
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".yml"):
            continue
        content = yaml.load(file.read_bytes(), Loader=loader)
        for conversation in content["conversations"]:
            turns = conversation if isinstance(conversation, list) else [conversation]
            text = "\n".join(str(turn).strip() for turn in turns if turn is not None).strip()
            if text:
                texts.setdefault(file.name.removesuffix(".yml"), []).append(text)
    return texts
