"""Who reads whom, and with what weight. numpy, scipy and networkx; no torch, no network, no clock.

From a name to a row of the mixing matrix W:

- ``links``: my row of W this round; topologies by name. The entrance.
- ``plans``: what stands behind a name. ``parameters``: ``random-regular:4`` and the like.
- ``graphs``: static graphs. ``schedules``: time-varying ones. ``finite_time``: exact averages in finite time.
- ``given``, ``given_graphs``: matrices and graphs from a file. ``cliques``: D-Cliques.
- ``weights``: graph to W. ``optimal``, ``sinkhorn``: two of its rules.
- ``announced``: what peers tell of their data where W goes by it.
- ``edges``: edges as arrays. ``draws``: random numbers on which all peers agree. ``errors``: the one error.

What W promises:

- ``spectral``: gap, effective neighbors, contraction. ``validation``: which guarantees a matrix gives.
- ``structure``: degrees, diameter, robustness. ``analysis``: all figures of one topology in a record.
- ``consensus``: linear averaging, and how fast it is. ``loss``: what lost messages do to W.
- ``quadratic``: where heterogeneous quadratics come to rest. ``cost``: bytes and seconds to consensus.
- ``advice``: which topology for my case.
"""
