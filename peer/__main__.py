"""``python -m peer`` is the console script ``peer``."""

from peer.cli import main

main()
