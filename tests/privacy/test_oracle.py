"""Both accountants against dp-accounting, where there is one: GOSSIP_PEER_DP_ORACLE names a Python that has it.

python3 -m venv ORACLE && ORACLE/bin/pip install dp-accounting==0.6.0
GOSSIP_PEER_DP_ORACLE=ORACLE/bin/python pytest -s tests/privacy/test_oracle.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from peer.privacy.accounting import Accountant, epsilon
from peer.privacy.charge import Charge

ORACLE = os.environ.get("GOSSIP_PEER_DP_ORACLE", "")
CASES = [
    (1e-5, [Charge(1.0, 1.0, 1)]),
    (1e-5, [Charge(1.1, 64 / 450, 60)]),
    (1e-5, [Charge(2.5, 64 / 450, 60)]),
    (1e-5, [Charge(0.8, 256 / 60_000, 14_040)]),
    (1e-6, [Charge(1.0, 0.01, 1000)]),
    (1e-5, [Charge(0.5, 0.0032, 2000)]),
    (1e-5, [Charge(2.0, 0.0032, 20_000)]),
    (1e-8, [Charge(3.0, 0.1, 500)]),
    (1e-5, [Charge(1.0, 0.1, 30), Charge(2.0, 0.05, 200), Charge(0.9, 0.01, 50)]),
]
LOOSER: dict[Accountant, float] = {"pld": 2e-4, "rdp": 3e-3}
"""How far ours may lie above theirs: our grid's spacing; their grid is coarser, and their divergences at whole orders
are the same, at others up to 0.3 % larger."""
TIGHTER: dict[Accountant, float] = {"pld": 1e-3, "rdp": 1e-3}


@pytest.mark.skipif(not ORACLE, reason="GOSSIP_PEER_DP_ORACLE names no Python with dp-accounting")
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_epsilon_is_what_dp_accounting_says(accountant: Accountant) -> None:
    asked = json.dumps([[accountant, delta, charges] for delta, charges in CASES])
    script = Path(__file__).with_name("dp_oracle.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        [ORACLE, str(script)], input=asked, capture_output=True, text=True, env=environment, check=True
    )
    for (delta, charges), theirs in zip(CASES, json.loads(answer.stdout), strict=True):
        ours = epsilon(charges, delta, accountant)
        print(f"{accountant} {charges} delta {delta:g}: ours {ours:.5f}, theirs {theirs:.5f}")
        assert (1 - TIGHTER[accountant]) * theirs <= ours <= (1 + LOOSER[accountant]) * theirs
