"""Run by a Python that has dp-accounting, which cannot be installed beside ours: it wants an older attrs.

Reads from stdin a JSON list of [accountant, delta, [[noise multiplier, sampling rate, steps], ...]] and writes the list
of what dp-accounting says epsilon is.
"""

import json
import sys
import warnings

import dp_accounting
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant


def epsilon(accountant: str, delta: float, charges: list[list[float]]) -> float:
    counted = RdpAccountant() if accountant == "rdp" else PLDAccountant(value_discretization_interval=1e-4)
    for noise, rate, steps in charges:
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
        counted.compose(event, int(steps))
    return float(counted.get_epsilon(delta))


warnings.simplefilter("ignore")
print(json.dumps([epsilon(*asked) for asked in json.load(sys.stdin)]))
