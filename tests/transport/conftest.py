"""The networks that every conformance test runs on: all of the catalogue, and one that a test plugs in."""

import pytest
import veiled
from networks import SETUPS, Network

from peer.network.catalogue import TRANSPORTS

PLUGGED_IN = "veiled"


@pytest.fixture(params=[*TRANSPORTS, PLUGGED_IN])
def net(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Network:
    setups = dict(SETUPS)
    if request.param == PLUGGED_IN:
        monkeypatch.setitem(TRANSPORTS, PLUGGED_IN, veiled.KIND)
        setups[PLUGGED_IN] = veiled.SETUP
    return Network(setups[request.param])
