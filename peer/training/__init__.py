"""The training process: models, data, adapters, local steps. No file here knows of peers, rounds of gossip or mixing.

Between the processes:
- ``frames``: what a peer and its training process say to one another, and the frames it travels in.
- ``process``: the peer's side: starts the training process and talks to it.
- ``worker``: the training process itself: serves a trainer over its pipes.
- ``trainers``: what a trainer is, and the catalogue of trainers.

Our trainer:
- ``local_trainer``: optimizer steps on the adapter of a frozen base, held-out losses, what resumes.
- ``own_optimizer``: a peer's own optimizer and generators, and the file in which they rest.
- ``local_steps``: what all steps have in common: optimizers, what is added to a step besides the gradient.
- ``step_kinds``: the catalogue of ways to make a gradient; ``plain_steps``: of a batch in seeded order.
- ``schedules``: how the learning rate changes over a run.
- ``rates``: the rate of a run whose user gave none; ``rate_trial``: one from a short trial on one's own text.
- ``memory``: what running out of memory looks like.
- ``shard``: the sequences that a peer learns and measures.

Differential privacy:
- ``private_steps``: steps that keep a promise; ``privacy_budget``: their noise, and leave to take them.
- ``units``: whose data are protected as one; ``per_sample``: the gradient of each sequence by itself.
- ``secret_noise``: numbers that nobody can guess.

The model:
- ``adapted_model``: a frozen base model with one adapter on it.

What is learned:
- ``task``: what a task is, and measuring; ``tasks``: the catalogue of tasks.
- ``causal_lm``, ``classification``: a task each.
- ``readers``: files of rows; ``data``: rows, checked and split; ``sequences``: rows as tokens, batches and their order.
- ``token_files``: text from which a model from scratch is made, as tokens on disk.

Adapters:
- ``adapter_kinds``: the catalogue of kinds; ``lora_xs``: the one that is ours.
- ``adapter_modules``: which modules are adapted; ``adapter_tensors``: which tensors are trained and travel.
- ``adapter_export``: the files that others load; ``export``: the line of Python that loads them.

Base models:
- ``base_models``: where a base model comes from; ``tiny_model``: one made on the spot.
- ``fresh_models``: models that nobody has trained yet; ``model_making``: how all of them are made once.
- ``packages``: files out of package indexes; ``libraries``: what we use of transformers and peft.
- ``inference``: measuring a finished adapter, and talking to it.

What adapters give away:
- ``audit``: auditing finished adapters; ``audited_rows``: the rows on which, as they were learned.
- ``canaries``: random rows planted to be looked for.
- ``leakage``: the statistics.
"""
