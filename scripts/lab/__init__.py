"""The laboratory: local networks, convergence experiments, comparisons."""
