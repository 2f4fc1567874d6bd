"""How the whole suite runs: over two processes, and with no test judged by how fast the machine is."""

from __future__ import annotations

import os

# Before anything imports torch: its threads, as many per worker as there are cores, spin while they wait for one
# another. A test of 2 s was seen to take 75 s.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# Workers and the peers that tests start compete for the cores: a slow example says nothing about the code.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return 2 for the whole suite (measured on 2 cores) and 0, no other process, for named files or tests.

    Each worker imports torch and collects everything: seconds that a file or two do not win back.
    """
    return 2 if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden", action="store_true", help="write the golden files of tests/golden anew"
    )
