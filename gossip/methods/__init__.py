"""The catalogues of methods, the stages that a round's numbers pass through, and the pipeline made of them.

Reading order: ``contribution`` (what is mixed), ``parts`` (what of an adapter travels in a round), ``stage`` (the
seam), ``method_set`` (names become a tuple of stages), ``pipeline`` (runs it); then the catalogues, from
``optimizers`` to ``codecs`` in the order of the stages (``optimizer_stage``: what an optimizer is; ``outer_steps``:
those of them that go on from what was mixed; ``sparse``, ``chunked`` and ``lowrank``: numerics of codecs). What may be
mixed is decided by ``guards``, ``reach`` (how far rounds go) and ``robust`` (rules for a row); how all adapters become
one by ``merging``. ``centers`` is the numerics of the last two.
"""
