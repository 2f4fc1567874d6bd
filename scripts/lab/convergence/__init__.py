"""How topologies converge: cells, sweeps of them, reports."""
