"""How fast topologies converge; see ``scripts/lab/convergence/command.py``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lab.convergence.command import main

if __name__ == "__main__":
    sys.exit(main())
