"""Private text: every format, every kind of bad row with its line, the split, packing, masking, the sampler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.errors import LocalError
from peer.training import data, tiny_model
from peer.training.readers import DataError
from peer.training.sequences import (
    IGNORED,
    PARTIAL_BLOCK_MIN,
    BatchSampler,
    Tokens,
    collate,
    render,
    tokenize,
)
from scripts.lab import corpus

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello you"}]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_model.byte_tokenizer()


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_bad_rows_are_named_by_file_line_and_reason(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": "cut',
        b"",
        b'{"text": ""}',
        b'{"text": 7}',
        b'{"body": "x"}',
        b"[1, 2]",
        b'{"text": "\xff"}',
        b'{"messages": []}',
        b'{"messages": [{"role": "user"}]}',
        b'{"completion": "x"}',
        b'{"text": "\\ud800"}',
        b'{"prompt": "a", "completion": [{"role": "user", "content": "b"}]}',
        b'{"prompt": "a", "completion": "b"}',
    ]
    path = write(tmp_path / "rows.jsonl", b"\n".join(lines))
    loaded = data.load([path])
    assert [row.line for row in loaded.rows] == [1, 14]
    reasons = {bad.line: bad.reason for bad in loaded.bad}
    expected = {
        2: "malformed JSON",
        4: "empty",
        5: "must be text, found int",
        6: "found 'body'",
        7: "expected an object, found list",
        8: "not valid UTF-8 at byte 11",
        9: "not empty",
        10: '"role" and "content"',
        11: "without",
        12: "not valid Unicode",
        13: "both",
    }
    assert reasons.keys() == expected.keys()
    for line, reason in expected.items():
        assert reason in reasons[line]
    assert f"{path}:2: malformed JSON" in loaded.report()
    with pytest.raises(DataError) as raised:
        data.load([path], bad_rows="refuse")
    assert f"{path}:2:" in str(raised.value)
    assert raised.value.exit_code == 6


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    texts = ["one\ntwo", "drei, vier", "cinq é"]
    rows = [{"text": text} for text in texts]
    files = [
        write(tmp_path / "a.jsonl", "\ufeff" + "\n".join(map(json.dumps, rows)) + "\n"),
        write(tmp_path / "b.json", json.dumps(rows)),
        write(tmp_path / "c.json", json.dumps({"data": rows})),
        write(tmp_path / "d.json", "\n".join(map(json.dumps, rows))),
        write(tmp_path / "e.csv", 'text,other\n"one\ntwo",1\n"drei, vier",2\ncinq é,3\n'),
        write(tmp_path / "f.txt", "one\ntwo\n\n\ndrei, vier\n  \ncinq é"),
        tmp_path / "g.parquet",
        tmp_path / "h",
        tmp_path / "i",
    ]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), files[6])
    dataset = datasets.Dataset.from_dict({"text": texts})
    dataset.save_to_disk(files[7])
    datasets.DatasetDict({"train": dataset}).save_to_disk(files[8])
    for file in files:
        loaded = data.load([file])
        assert [row.content for row in loaded.rows] == texts, file
        assert not loaded.bad
    assert [row.line for row in data.load([files[5]]).rows] == [1, 5, 7]


def test_bad_csv_and_txt_rows_are_named(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", b"text\ngood\na,b\n\xff\n")
    assert [(bad.line, bad.reason) for bad in data.load([table]).bad] == [
        (3, "more fields than the header has"),
        (4, '"text" is not valid Unicode'),
    ]
    prose = write(tmp_path / "b.txt", b"good\n\n\xff\n\ngood")
    loaded = data.load([prose])
    assert [bad.line for bad in loaded.bad] == [3]
    assert [row.line for row in loaded.rows] == [1, 5]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("missing.jsonl", None, "no data at"),
        ("empty.jsonl", b"", "no usable row"),
        ("bad.jsonl", b"{", "bad.jsonl:1: malformed JSON"),
        ("picture.png", b"x", "unknown kind '.png'"),
        ("broken.parquet", b"PAR1xxxx", "cannot be read as parquet"),
        ("number.json", b"3", "holds int"),
    ],
)
def test_unusable_files_say_what_to_do(
    tmp_path: Path, name: str, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        data.load([path])


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="save_to_disk"):
        data.load([tmp_path])


def test_the_split_depends_on_each_file_and_the_seed_alone(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", "".join(f'{{"text": "a{index}"}}\n' for index in range(40)))
    second = write(tmp_path / "b.jsonl", "".join(f'{{"text": "b{index}"}}\n' for index in range(7)))
    alone = data.split(data.load([first]).rows, 0.1, 3)[1]
    both = data.split(data.load([second, first]).rows, 0.1, 3)
    assert len(alone) == 4
    assert [row for row in both[1] if row.file == first] == alone
    assert sum(row.file == second for row in both[1]) == 1
    assert len(both[0]) + len(both[1]) == 47
    assert data.split(data.load([first]).rows, 0.1, 4)[1] != alone
    one = write(tmp_path / "one.jsonl", '{"text": "x"}')
    with pytest.raises(DataError, match="at least 2"):
        data.split(data.load([one]).rows, 0.5, 0)


def test_one_row_more_changes_the_side_of_no_other_where_rows_are_held_out_one_by_one(tmp_path: Path) -> None:
    texts = [f"row {index}" for index in range(200)]

    def sides(texts: list[str], seed: int = 3) -> tuple[set[Any], set[Any]]:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        rows = data.load([write(tmp_path / "a.jsonl", lines)]).rows
        kept, held = data.split(rows, 0.1, seed, one_by_one=True)
        return {row.content for row in kept}, {row.content for row in held}

    kept, held = sides(texts)
    assert 8 <= len(held) <= 35  # binomial: 20 in the mean, 4.2 apart
    assert sides(texts[::-1]) == (kept, held)
    assert sides([*texts, "row 7"]) == (kept, held)  # the same row twice stays on one side
    for place in (0, 57, 200):
        with_one_more = sides([*texts[:place], "another", *texts[place:]])
        assert with_one_more[0] - {"another"} == kept
        assert with_one_more[1] - {"another"} == held
    assert sides(texts, seed=4)[1] != held
    for few in (["a", "b"], ["a", "b", "c"]):
        assert all(sides(few, seed)[0] and sides(few, seed)[1] for seed in range(30))


def test_text_is_packed_with_its_ends_and_no_token_is_lost(tmp_path: Path, tokenizer: Any) -> None:
    texts = [f"row {index} " + "x" * index for index in range(30)]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    sequences, bad = tokenize(data.load([path]).rows, tokenizer, 64)
    assert not bad
    joined = [token for one in sequences for token in one.ids]
    expected = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rest = len(expected) % 64
    assert joined == expected[: len(expected) - (rest if rest < PARTIAL_BLOCK_MIN else 0)]
    assert all(len(one.ids) == 64 for one in sequences[:-1])


def test_text_begins_as_the_tokenizer_begins_it(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_model.byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    path = write(tmp_path / "a.jsonl", '{"text": "ab"}\n{"prompt": "c", "completion": "d"}\n')
    rows = data.load([path]).rows
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert begin not in [token for one in tokenize(rows, tokenizer, 64)[0] for token in one.ids]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", begin)]
    )
    sequences, _ = tokenize(rows, tokenizer, 64)
    assert [(one.ids[0], one.ids[-1]) for one in sequences] == [(begin, end)] * 2
    assert [len(one.ids) for one in sequences] == [4, 4]


def test_padding_is_masked_by_length_even_where_pad_is_the_end_token(tokenizer: Any) -> None:
    from array import array

    end = tokenizer.eos_token_id
    sequences = [Tokens(array("i", [1, 2, 3, end])), Tokens(array("i", [5, end]), prompt=1)]
    batch = collate(sequences, pad=end)
    assert batch["input_ids"].tolist() == [[1, 2, 3, end], [5, end, end, end]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3, end], [IGNORED, end, IGNORED, IGNORED]]


@pytest.mark.parametrize("as_messages", [False, True])
def test_only_the_completion_is_learned(tmp_path: Path, tokenizer: Any, as_messages: bool) -> None:
    row = (
        {"prompt": CHAT[:1], "completion": CHAT[1:]} if as_messages else {"prompt": "Hi", "completion": "Yo"}
    )
    path = write(tmp_path / "a.jsonl", json.dumps(row))
    rows = data.load([path]).rows
    (one,), _ = tokenize(rows, tokenizer, 64)
    learned = tokenizer.decode(list(one.ids[one.prompt :]))
    assert learned == ("Hello you\n<end>" if as_messages else "Yo<end>")
    assert render(rows[0], tokenizer).startswith("user: Hi\nassistant: " if as_messages else "HiYo")
    (cut,), _ = tokenize(rows, tokenizer, 8)
    assert len(cut.ids) <= 8
    assert len(cut.ids) > cut.prompt


def test_a_chat_uses_the_models_template_and_its_refusals_are_bad_rows(tmp_path: Path) -> None:
    tokenizer = tiny_model.byte_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}"
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    lines = [{"messages": CHAT}, {"messages": CHAT[::-1]}, {"prompt": CHAT[:1], "completion": CHAT[1:]}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    sequences, bad = tokenize(data.load([path]).rows, tokenizer, 64)
    assert tokenizer.decode(list(sequences[0].ids)) == "[user]Hi[assistant]Hello you"
    assert tokenizer.decode(list(sequences[1].ids[sequences[1].prompt :])) == "Hello you"
    assert [(one.line, "user first" in one.reason) for one in bad] == [(2, True)]


@given(
    count=st.integers(1, 20), batch_size=st.integers(1, 7), drawn=st.integers(0, 30), seed=st.integers(0, 3)
)
def test_the_sampler_resumes_exactly_and_visits_all(
    count: int, batch_size: int, drawn: int, seed: int
) -> None:
    whole, broken = BatchSampler(count, batch_size, seed), BatchSampler(count, batch_size, seed)
    visited = [index for _ in range(drawn) for index in whole.draw()]
    for epoch in range(len(visited) // count):
        assert sorted(visited[epoch * count : (epoch + 1) * count]) == list(range(count))
    broken.restore(json.loads(json.dumps(whole.state())))
    assert [whole.draw() for _ in range(5)] == [broken.draw() for _ in range(5)]


def test_the_sampler_refuses_the_state_of_other_data() -> None:
    with pytest.raises(DataError, match="cannot resume"):
        BatchSampler(5, 2, 0).restore(BatchSampler(6, 2, 0).state())


def test_the_demo_corpus_is_written_alike_each_time(tmp_path: Path, languages: dict[str, Path]) -> None:
    again = corpus.write(tmp_path)
    sizes = {}
    for language, file in languages.items():
        assert again[language].read_bytes() == file.read_bytes()
        sizes[language] = len(data.load([file]).rows)
    assert sizes == {"spanish": 280, "german": 113, "french": 89, "italian": 562}
    with pytest.raises(LocalError, match="no language 'klingon'"):
        corpus.write(tmp_path, ["klingon"])
