"""What peers of a run must have alike, what may differ, and what they are told where something does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gossip.adapter import AdapterSpec, AdapterState
from gossip.manifest import OWN, RATE, first_difference
from peer.config import OPTIONS, PeerConfig
from peer.options import Role, names_with
from peer.run_manifest import manifest_of
from peer.run_plan import plan_run
from peer.training.frames import Export, Ready

KIND_OF_NOTICE = (Role.RUN, Role.BOUNDED, Role.OWN)
LORA = AdapterSpec.of(
    {
        f"layers.0.q_proj.lora_{part}.weight": torch.zeros(*shape)
        for part, shape in (("A", (4, 8)), ("B", (8, 4)))
    }
)
FRIEND = "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
OTHERWISE: dict[str, dict[str, Any]] = {
    "task": {"task": "classification", "labels": ("a", "b")},
    "labels": {"task": "classification", "labels": ("a", "c")},
    "adapter": {"adapter": "dora"},
    "lora_target_modules": {"lora_target_modules": ("q_proj",)},
    "lora_layers": {"lora_layers": "0"},
    "schedule": {"schedule": "linear"},
    "topology": {"topology": "ring"},
    "share": {"share": "both"},
    "weights": {"weights": "uniform"},
    "roster": {"roster": (FRIEND,)},
    "factors": {"factors": "ffa"},
    "mixing": {"mixing": "age"},
    "optimizer": {"optimizer": "qg"},
    "codec": {"codec": "int8"},
    "feedback": {"codec": "int8", "feedback": "error"},
    "gamma": {"gamma": 0.5},
    "merge": {"merge": "none"},
    "load_in_4bit": {"load_in_4bit": True},
    "overlap": {"overlap": True},
}
"""Option -> options with another value of it than the default, where one more than the default will not do."""
SEEN_ELSEWHERE = frozenset(
    {"model", "from_scratch", "tokenizer", "dtype", "private_head", "open", "secret", "mask", "budget_mb"}
)
"""Options of a run that show in what the training process tells (digests, names of tensors), that are settled before a
hello, or that want a whole setting of their own (masks, budgets)."""


def ready(**told: str) -> Ready:
    found = {
        "base_digest": "base", "base_dtype": "bfloat16", "tokenizer_digest": "tokenizer",
        "adapter_spec": LORA.fingerprint, "adapter_digest": "initial", "adapter_frozen": "",
    }  # fmt: skip
    initial = AdapterState(LORA, torch.zeros(LORA.size))
    return Ready(initial, found | told, "tiny", "cpu", "", 1, 1, 1, 1, 0.0, Export({}, (), None))


def fields(**options: Any) -> dict[str, str | int]:
    plan = plan_run(PeerConfig.of(**options))
    return manifest_of(plan, ready(), plan.methods(LORA)).fields()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_says_who_notices_it(name: str) -> None:
    roles = OPTIONS[name].roles
    assert sum(role in roles for role in KIND_OF_NOTICE) == 1, (
        f"{name}: say in its declaration whether all peers have it alike (RUN, so that the manifest has it), whether "
        "guards bound what it does to others (BOUNDED), or whether nobody notices (OWN)"
    )


@pytest.mark.parametrize("name", sorted(set(names_with(Role.RUN, OPTIONS)) - SEEN_ELSEWHERE))
def test_an_option_of_the_run_is_in_the_manifest(name: str) -> None:
    default = OPTIONS[name].default
    ours, theirs = fields(), fields(**(OTHERWISE.get(name) or {name: default + 1}))
    told = first_difference(ours, theirs, advise=True)
    assert told is not None
    assert "differs" in told


@pytest.mark.parametrize("name", sorted(set(names_with(Role.OWN, OPTIONS))))
def test_an_option_that_nobody_notices_is_not_in_it(name: str) -> None:
    assert name not in fields()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"learning_rate": 0.5},
            "learning_rate differs: ours is 0.01, theirs is 0.5; give --learning-rate 0.5",
        ),
        ({"max_length": 16}, "max_length differs: ours is 64, theirs is 16; give --max-length 16"),
        ({"topology": "ring"}, "topology differs: ours is epidemic:4, theirs is ring; give --topology ring"),
        ({"lora_r": 4}, "lora_r differs: ours is 8, theirs is 4; give --lora-r 4"),
        ({"overlap": True}, "overlap differs: ours is no, theirs is yes; give --overlap"),
        (
            {"task": "classification", "labels": ("a", "b")},
            'task differs: ours is {"task": "causal-lm"}, theirs is {"labels": ["a", "b"], "private_head": false, '
            '"task": "class...; give the same --task, and its --labels in the same order',
        ),
    ],
)
def test_a_difference_names_both_values_and_what_to_write(options: dict[str, Any], told: str) -> None:
    given = {"learning_rate": 0.01}
    assert first_difference(fields(**given), fields(**given | options), advise=True) == told


def test_long_values_are_shown_where_they_part() -> None:
    ours = {"codec": "x" * 200 + "ours" + "y" * 200}
    theirs = {"codec": "x" * 200 + "theirs" + "y" * 200}
    told = first_difference(ours, theirs)
    assert told is not None
    mine, other = told.split(", theirs is ")
    assert "xours" in mine
    assert "xtheirs" in other
    assert len(told) < 200


def test_a_rate_that_cannot_be_compared_divides_nobody() -> None:
    plans = [plan_run(PeerConfig.of(learning_rate=rate, **more)) for rate, more in RATES]
    manifests = [manifest_of(plan, ready(), plan.methods(LORA)) for plan in plans]
    plain, noisy = (manifest.fields() for manifest in manifests)
    assert (plain[RATE], noisy[RATE]) == ("0.01", OWN)
    assert first_difference(plain, noisy) is None
    assert first_difference(noisy, plain) is None
    assert manifests[0].fingerprint == manifests[1].fingerprint


RATES: tuple[tuple[float, dict[str, Any]], ...] = ((0.01, {}), (0.1, {"dp_epsilon": 8.0}))


def test_a_matrix_is_known_by_its_content_and_not_by_its_path(tmp_path: Path) -> None:
    told = []
    for name, matrix in (("a", ".5,.5\n.5,.5\n"), ("b", ".5,.5\n.5,.5\n"), ("c", ".6,.4\n.4,.6\n")):
        file = tmp_path / f"{name}.csv"
        file.write_text(matrix)
        told.append(fields(topology=f"matrix:{file}", roster=("x", "y"))["topology"])
    assert told[0] == told[1] != told[2]
    assert str(tmp_path) not in str(told[0])


def test_every_setting_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    for name in fields():
        assert f"`{name}`" in page, name
