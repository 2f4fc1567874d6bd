"""What is measured by scripts/bench.py, a file per section."""
