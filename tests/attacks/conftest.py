"""The suite of attacks uses what the transport's tests run on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "transport"))
