"""Thin entry points, and the laboratory behind them.

testnet, convergence, compare    start the commands of ``lab``; installed, ``peer testnet`` and so on do the same
bench                            starts the command of ``benchmarks``
lab                              networks on one machine, experiments and comparisons
benchmarks                       how fast everything is
"""
