"""Agents that learn from one another, measured: what sharing answers, weights or both is worth, over seeds.

trial     one run of one method, in one process: the real trainer, the real buffer and wire form of answers
tables    the methods side by side, paired over seeds
command   ``scripts/compare.py agents``
demo      ``scripts/testnet.py --task agent``: the same with real processes
"""
