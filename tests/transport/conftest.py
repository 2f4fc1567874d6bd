"""The two networks that every conformance test runs on."""

import pytest
from networks import Libp2pFace, MemoryFace


@pytest.fixture(params=[MemoryFace, Libp2pFace], ids=["memory", "libp2p"])
def net(request: pytest.FixtureRequest) -> MemoryFace | Libp2pFace:
    return request.param()
