"""What is learned: labels and their head, answers alone, and what a base cannot do."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from peer.cli import evaluate
from peer.config import PeerConfig
from peer.journal_events import Measured
from peer.journal_lines import Record
from peer.training import base_models, data, readers, task, tasks, tiny_model
from peer.training.classification import head_names
from peer.training.inference import Conversation, labels_of, load_adapter, measure
from peer.training.local_trainer import LocalTrainer
from peer.training.sequences import IGNORED
from scripts.lab.testnet.config import TestnetConfig
from scripts.lab.testnet.plan import PlannedPeer
from scripts.lab.testnet.summary import summarize
from scripts.lab.testnet.view import PeerView
from scripts.lab.workloads import lay_out, parse_workload

Quick = Callable[..., PeerConfig]
LABELS = ("question", "statement")
CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me"},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Phrases that differ in their last letter alone: a file of each label, and one of both."""
    folder = tmp_path_factory.mktemp("labeled")
    phrases = [
        f"{one} {other}"
        for one in tiny_model.phrases(tiny_model.SUBJECTS)
        for other in tiny_model.phrases(tiny_model.VERBS)
    ][::2]
    rows = {
        label: [{"text": phrase + mark, "label": label} for phrase in phrases]
        for label, mark in zip(LABELS, "?.", strict=True)
    }
    files = {label: write(folder / f"{label}.jsonl", own) for label, own in rows.items()}
    return {**files, "both": write(folder / "both.jsonl", [row for own in rows.values() for row in own])}


@pytest.fixture
def classify(quick: Quick, shards: dict[str, Path]) -> Quick:
    def make(**settings: object) -> PeerConfig:
        given = {"data": (shards["both"],), "task": "classification", "labels": LABELS, "eval_blocks_max": 80}
        return quick(**{**given, **settings})

    return make


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT over bytes, without a head."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = tiny_model.byte_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=96, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_row_needs_one_of_the_labels(tmp_path: Path) -> None:
    good = [{"text": "a", "label": "no"}, {"text": "b", "label": 1}, {"text": "c", "label": " 0 "}]
    bad = [
        {"text": "d"},
        {"label": "no"},
        {"text": "e", "label": "maybe"},
        {"text": "f", "label": 2},
        {"text": "g", "label": True},
        {"text": "", "label": "no"},
    ]
    file = write(tmp_path / "rows.jsonl", [*good, *bad])
    loaded = data.load([file], labels=("no", "yes"))
    assert [(row.content, row.label) for row in loaded.rows] == [("a", "no"), ("b", "yes"), ("c", "no")]
    assert [(one.line, one.reason) for one in loaded.bad] == [
        (4, 'no "label"'),
        (5, 'no "text"'),
        (6, "\"label\" 'maybe' is none of no, yes"),
        (7, "\"label\" '2' is none of no, yes"),
        (8, '"label" must be text or a whole number, found bool'),
        (9, '"text" is empty'),
    ]
    assert "3 rows of labeled text" in loaded.report()
    with pytest.raises(readers.DataError, match='needs "text" and "label"'):
        data.load([write(tmp_path / "none.jsonl", bad)], labels=("no", "yes"))
    table = tmp_path / "rows.csv"
    table.write_text("text,label\na,yes\nb,0\n")
    assert [row.label for row in data.load([table], labels=("no", "yes")).rows] == ["yes", "no"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"task": "classification"}, "at least 2 different labels, not none"),
        ({"task": "classification", "labels": ("a",)}, "not a:"),
        ({"task": "classification", "labels": ("a", "a")}, "different labels"),
        ({"task": "classification", "labels": ("a", "")}, "different labels"),
        ({"labels": ("a", "b")}, "for --task classification only"),
        ({"private_head": True}, "for --task classification only"),
        ({"task": "regression"}, "unknown --task 'regression'; known: causal-lm, classification"),
    ],
)
def test_labels_and_task_must_fit(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LocalError, match=complaint):
        PeerConfig.of(**settings)


def test_peers_of_a_run_have_the_same_labels_in_the_same_order() -> None:
    ab, ba = (PeerConfig.of(task="classification", labels=labels) for labels in (("a", "b"), ("b", "a")))
    assert (
        tasks.canonical(ab.model) == '{"labels": ["a", "b"], "private_head": false, "task": "classification"}'
    )
    assert tasks.canonical(ab.model) != tasks.canonical(ba.model)
    assert tasks.canonical(PeerConfig().model) == '{"task": "causal-lm"}'
    assert PeerConfig.from_json(ab.to_json()) == ab


def test_peers_start_with_one_head_whatever_their_data_and_learn_the_labels(
    classify: Quick, shards: dict[str, Path]
) -> None:
    first = LocalTrainer(classify(eval_data=(shards["both"],), local_steps=20, held_out=0.3))
    torch.manual_seed(99)  # whatever happened to the generator before
    one_sided = LocalTrainer(classify(data=(shards["statement"],)))
    assert first.manifest == one_sided.manifest
    said = one_sided.ready(0.0)
    assert said.label_rows == (0, said.rows), "all of its rows are statements"
    assert LocalTrainer(classify(seed=1)).manifest["adapter_digest"] != first.manifest["adapter_digest"]
    assert head_names(first.spec) == {"base_model.model.score.weight"}
    assert dict(first.initial.tensors())["base_model.model.score.weight"].std() == pytest.approx(
        0.02, rel=0.3
    )
    before = first.evaluate(first.initial)
    assert before.own == pytest.approx(math.log(2), abs=0.1), "a small head gives each label about the same"
    trained = first.train(first.initial)
    assert trained.tokens == trained.sequences == 20 * 8
    after = first.evaluate(trained.state)
    assert after.accuracy is not None
    assert after.accuracy > 0.9
    assert after.accuracy_per_file == {str(shards["both"]): after.accuracy_all}
    assert after.own < before.own - 0.2


def test_loss_and_accuracy_are_means_over_texts(classify: Quick) -> None:
    trainer = LocalTrainer(classify())
    found = trainer.evaluate(trainer.initial)
    (sequences,) = trainer.shard.held_out.values()
    loss, hits = 0.0, 0
    for one in sequences:  # one at a time, without padding
        with torch.no_grad():
            logits = trainer.model.module(input_ids=torch.tensor([one.ids])).logits[0]
        loss -= logits.log_softmax(-1)[one.label].item()
        hits += int(logits.argmax()) == one.label
    assert found.own == pytest.approx(loss / len(sequences), rel=1e-5)
    assert found.accuracy == pytest.approx(hits / len(sequences))
    assert (found.all, found.accuracy_all) == (None, None)


@pytest.mark.parametrize("kind", ["lora", "ia3", "layernorm", "vera"])
def test_an_encoder_gets_its_own_modules_and_plain_peft_loads_what_it_learned(
    classify: Quick, encoder: Path, tmp_path: Path, kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    modules = PeerConfig().model.lora_target_modules  # as if none were given
    trainer = LocalTrainer(classify(model=str(encoder), lora_target_modules=modules, adapter=kind))
    if kind == "lora":
        adapted = {name.split(".")[-3] for name, _ in trainer.spec.entries if ".lora_" in name}
        assert adapted == {"query", "key", "value"}
    head = {"base_model.model.classifier.weight", "base_model.model.classifier.bias"}
    assert head_names(trainer.spec) == head
    trained = trainer.train(trainer.initial)
    for name in head:
        assert not torch.equal(dict(trained.state.tensors())[name], dict(trainer.initial.tensors())[name])

    export = trainer.model.export
    for name, text in export.files.items():
        (tmp_path / name).write_text(text)
    save_file(dict(trained.state.tensors()), tmp_path / export.weights)
    base = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    trainer.model.put(trained.state)
    batch, _ = trainer._batch(trainer.shard.train[:4])
    trainer.model.module.eval()
    loaded.eval()
    with torch.no_grad():
        ours, theirs = trainer.model.module(**batch).logits, loaded(**batch).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def exported(trainer: LocalTrainer, state: AdapterState, folder: Path) -> Path:
    made = trainer.model.export
    folder.mkdir()
    for name, text in made.files.items():
        (folder / name).write_text(text)
    for path in made.copies:
        shutil.copy(path, folder)
    save_file(dict(state.tensors()), folder / made.weights, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def half(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in bfloat16, as most models are."""
    from transformers import AutoModelForCausalLM

    folder, source = tmp_path_factory.mktemp("half"), base_models.resolve("tiny").folder
    AutoModelForCausalLM.from_pretrained(source).to(torch.bfloat16).save_pretrained(folder)
    for file in source.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "base"), [("lora", "tiny"), ("lora", "half"), ("lora", "encoder"), ("full", "tiny")]
)
def test_an_exported_classification_says_its_labels_and_can_be_measured(
    classify: Quick, shards: dict[str, Path], half: Path, encoder: Path, tmp_path: Path, kind: str, base: str
) -> None:
    model = {"half": str(half), "encoder": str(encoder)}.get(base, base)
    trainer = LocalTrainer(classify(adapter=kind, model=model, local_steps=20))
    state = trainer.train(trainer.initial).state
    folder = exported(trainer, state, tmp_path / "adapter")
    assert json.loads((folder / "labels.json").read_text()) == list(LABELS)
    assert labels_of(folder) == LABELS
    loaded, _ = load_adapter(folder)
    assert loaded.config.id2label == dict(enumerate(LABELS))

    both, statements = measure(folder, [shards["both"], shards["statement"]], 64)
    sequences = [*trainer.shard.train, *next(iter(trainer.shard.held_out.values()))]
    assert len(sequences) == len(shards["both"].read_text().splitlines()), "all rows of the file"
    trainer.evaluate(state)
    expected = task.measure(trainer.task, trainer.model.module, sequences, 8, trainer._pad)
    assert both.loss == pytest.approx(expected.loss / len(sequences), rel=1e-4)
    assert both.accuracy == pytest.approx(expected.correct / len(sequences), abs=1e-9)
    assert (both.base, both.commonest, statements.commonest) == (None, 0.5, 1.0)


def test_what_gives_labels_does_not_chat_and_must_name_them(
    classify: Quick, tmp_path: Path, shards: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = LocalTrainer(classify())
    folder = exported(trainer, trainer.initial, tmp_path / "adapter")
    told = r"label \(question, statement\) and cannot chat.*peer eval(.|\n)*num_labels=2"
    with pytest.raises(LocalError, match=told):
        Conversation(folder, 4)
    evaluate(adapter=folder, data=(shards["question"],))
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["file", "loss", "accuracy", "commonest"]
    assert row.split()[3] == "100.0%"
    (folder / "labels.json").write_text('{"0": "question"}')
    with pytest.raises(LocalError, match="no list of labels"):
        next(measure(folder, [shards["both"]], 64))
    (folder / "labels.json").write_text('["a", "b", "c"]')
    with pytest.raises(LocalError, match="cannot load the adapter"):
        load_adapter(folder)
    (folder / "labels.json").unlink()
    with pytest.raises(LocalError, match=r"no labels\.json to name them"):
        Conversation(folder, 4)


def test_accuracy_is_told_and_summed_up(tmp_path: Path) -> None:
    loss = {"round": 3, "own": 0.5, "all": 0.25, "per_file": {"b": 0.0}}
    measurements = (
        Measured(**loss, accuracy=None, accuracy_all=None),
        Measured(**loss, accuracy=1.0, accuracy_all=0.75),
    )
    first, second = (event.sentence() for event in measurements)
    assert first == "after round 3: held-out loss 0.500, over all files 0.250"
    assert second == first + "; right 100.0%, over all files 75.0%"

    text, labeled = (json.loads(Record(0.0, event).json_line()) for event in measurements)
    view = PeerView(PlannedPeer("a", "gossip", tmp_path, ()), shards=2)
    traffic = dict.fromkeys(("bytes_in", "bytes_out", "fetches_ok", "fetches_failed"), 0)
    last = {"event": "round", "round": 0, "rounds": 1, "loss": None, "age": 0, "mixed": [], **traffic}
    last |= {"at": 1.0, "merging": False}
    for told in ({**labeled, "accuracy_all": 0.25}, labeled, last):
        view.take(told)
    (tmp_path / "adapter").mkdir()
    save_file({"x": torch.ones(2)}, tmp_path / "adapter" / "adapter_model.safetensors")
    summary = summarize(TestnetConfig(), {"gossip": [view]}, 0.0).record()
    found = [
        summary[f"{name}_accuracy{end}"] for name, end in (("base", ""), ("gossip", "_mean"), ("local", ""))
    ]
    assert found == [0.25, 0.75, None]
    assert summary["peers"][0]["accuracy_own"] == 1.0
    view.evaluations.clear()
    view.take(text)
    assert summarize(TestnetConfig(), {"gossip": [view]}, 0.0).gossip_accuracy_worst is None


def test_what_a_base_cannot_do_is_explained(classify: Quick, quick: Quick, encoder: Path) -> None:
    with pytest.raises(LocalError, match=r"cannot do --task causal-lm: its files lack .*classification"):
        LocalTrainer(quick(model=str(encoder)))
    with pytest.raises(LocalError, match="96 positions"):
        LocalTrainer(classify(model=str(encoder), max_length=128))
    with pytest.raises(LocalError, match="for a classification use lora"):
        LocalTrainer(classify(adapter="prompt-tuning"))


def test_a_head_computes_in_float32_on_a_base_in_bfloat16(classify: Quick) -> None:
    trainer = LocalTrainer(classify(dtype="bfloat16"))
    assert {one.dtype for one in trainer.model.parameters.values()} == {torch.float32}
    assert math.isfinite(trainer.train(trainer.initial).loss)


def test_only_the_answer_is_learned(quick: Quick, tmp_path: Path) -> None:
    tokenizer = tiny_model.byte_tokenizer()
    file = write(
        tmp_path / "chat.jsonl", [{"messages": CHAT}, {"messages": CHAT[:3]}, {"messages": CHAT[1:2]}]
    )
    rows = data.load([file]).rows
    objective = tasks.TASKS["causal-lm"]
    (one,), bad = objective.tokenize(rows, tokenizer, PeerConfig.of(answers_only=True))
    assert (
        tokenizer.decode(list(one.ids[: one.prompt])) == "user: Hi\nassistant: Yes?\nuser: Who?\nassistant: "
    )
    assert tokenizer.decode(list(one.ids[one.prompt :])) == "Me\n<end>"
    assert [(row.line, "does not end with an answer" in row.reason) for row in bad] == [(2, True), (3, True)]
    whole, bad = objective.tokenize(rows, tokenizer, PeerConfig())
    assert [sequence.prompt for sequence in whole] == [0, 0, 0]
    assert not bad
    batch, targets = objective.collate([one], 0)
    assert targets == len("Me\n") + 1
    assert (batch["labels"][0] != IGNORED).nonzero().flatten().tolist() == list(
        range(one.prompt, len(one.ids))
    )


def test_the_loss_of_an_answer_is_the_mean_over_its_tokens_given_the_prompt(
    quick: Quick, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{index} and one is ", "completion": "more" * (index % 3 + 1)} for index in range(12)]
    trainer = LocalTrainer(quick(data=(write(tmp_path / "rows.jsonl", rows),), held_out=0.5))
    (sequences,) = trainer.shard.held_out.values()
    total, tokens = 0.0, 0
    for one in sequences:
        with torch.no_grad():
            logits = trainer.model.module(input_ids=torch.tensor([one.ids])).logits[0]
        for place in range(one.prompt, len(one.ids)):
            total -= logits[place - 1].log_softmax(-1)[one.ids[place]].item()
            tokens += 1
    assert tokens == sum(len(one.ids) - one.prompt for one in sequences)
    assert trainer.evaluate(trainer.initial).own == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.real_model
def test_minilm_learns_where_snippets_are_from(tmp_path: Path) -> None:
    """Requirements the package index (86 MB), or the packages in the cache; takes half a minute."""
    laid = lay_out(parse_workload("sources"), 4, tmp_path, seed=0)
    everything = tmp_path / "all.jsonl"
    everything.write_text("".join(file.read_text() for file in laid.train))
    config = PeerConfig.of(
        data=(everything,), eval_data=laid.measured, **{**laid.settings, "local_steps": 40}
    )
    trainer = LocalTrainer(config)
    accuracy = trainer.evaluate(trainer.train(trainer.initial).state).accuracy_all
    assert accuracy is not None
    assert accuracy > 0.7, "0.84 was seen; chance is 0.25"
