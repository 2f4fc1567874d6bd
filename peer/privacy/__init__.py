"""What training with noise promises, counted: from noise and steps to (epsilon, delta), and a ledger over all runs.

- ``charge``: one piece of training with noise, as it is counted.
- ``renyi``: an accountant by Rényi divergences: simple, valid, somewhat too careful.
- ``loss_distribution``: an accountant by the distribution of the privacy loss: as tight as its grid.
- ``accounting``: epsilon of many charges, and the noise that a promise needs.
- ``ledger_file``: the files of the ledger, and what is refused of them.
- ``ledger``: what has been spent for whose data, on the disk before it is spent.
- ``guesses``: what a promise means for who guesses membership.
- ``statement``: what the ledger says, in numbers and plain words.

This room knows neither network nor training nor the command line; of ours it uses ``durable`` and ``gossip.errors``.
"""
