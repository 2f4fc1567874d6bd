"""Ways of learning together, compared on equal terms; see ``scripts/lab/comparison/command.py``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lab.comparison.command import main

if __name__ == "__main__":
    sys.exit(main())
