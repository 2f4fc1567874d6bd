"""A local network of peers beside learning alone and central training; see ``scripts.lab.testnet.command.py``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lab.testnet.command import main

if __name__ == "__main__":
    sys.exit(main())
