"""Learning by trial: an agent answers questions of environments, and learns from which of its answers were right.

- ``environment``: what an environment is, and judging answers; ``environments``: the catalogue, and the user's own.
- ``strings``: questions about short words and small numbers; ``games``: several turns, with tools.
- ``episodes``: a question and its answer as tokens; ``sampling``: answers drawn from a model.
- ``advantages``: what an answer is worth, and the objective (GRPO).
- ``lessons``: answers of other peers: which are right, which are needed.
- ``grpo``: the trainer; ``refusals``: what does not go together with it.
- ``novice``: a small base model that half knows the demo's environments.
"""
