"""Transports and their parts; libp2p is imported here and nowhere else."""
