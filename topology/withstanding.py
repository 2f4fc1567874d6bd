"""Which candidate withstands liars or colluders, in words: from figures to what one should take.

Trim-clip and masks exclude each other (a mask hides what a rule would compare), so each has a recommendation of its
own. It computes nothing: ``adversaries.py`` has counted, ``advice.py`` has ranked. Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from topology.adversaries import GUARDED_READS, ColluderExposure, LiarExposure, borne
from topology.advice import Advice

OVERRUN_ACCEPTED = 0.01
"""Share of overrun rows up to which a candidate counts as withstanding liars. Source: guess."""


def percent(share: float) -> str:
    """Return a share for people: never 0 % or 100 % where it is not that."""
    if share in (0.0, 1.0):
        return f"{share:.0%}".replace("%", " %")
    if not 0.001 <= share <= 0.999:
        return "<0.1 %" if share < 0.5 else ">99.9 %"
    return f"{100 * share:.{1 if share < 0.1 or share > 0.99 else 0}f} %"


def _none_or(share: float, noun: str) -> str:
    return f"no {noun}" if share == 0 else f"{percent(share)} of {noun}s"


def _at_worst(share: float, is_exhaustive: bool) -> str:
    if share == 0:
        return "wherever they stand" if is_exhaustive else "wherever they were tried"
    return f"({percent(share)} at worst)"


def of_liars(name: str, met: LiarExposure) -> str:
    """Return what liars can reach on one topology, as a sentence without its full stop."""
    least = met.reads_least
    if met.is_guarded:
        told = f"{percent(met.lied_to)} of rows hold a liar"
        if met.overrun_asked == 0:
            return f"{name}: {told}, and none more than trim-clip drops"
        clipped = "" if met.unbounded == 0 else f", but for {percent(met.unbounded)} of rows"
        return (
            f"{name}: {told}, {percent(met.overrun)} more than trim-clip drops ({borne(met.reads_most)} of "
            f"{met.reads_most}); the others are clipped to an honest distance{clipped}"
        )
    rows = "some rows read" if met.reads_most >= GUARDED_READS else "rows read"
    told = f"{name}: {rows} only {least}, and rows of fewer than {GUARDED_READS} are not guarded by default"
    if least < 2:
        return f"{told}; with {least} there is nothing to compare a liar with: read {GUARDED_READS} or more"
    return (
        f"{told}; even with --robust trim-clip, in {percent(met.overrun_asked)} of rows more than "
        f"{borne(least, asked=True)} of {least} lie: read {GUARDED_READS} or more"
    )


def of_colluders(name: str, met: ColluderExposure) -> str:
    """Return what colluders learn on one topology, as a sentence without its full stop."""
    told = f"{name}: without masks they read {percent(met.in_rows)} of adapters (all, without --readers row)"
    if not met.is_maskable:
        return f"{told}; masks want a fixed graph with at least {GUARDED_READS} reads"
    if met.group_least > 1:
        hidden = f"masks hide every adapter among at least {met.group_least} in a round"
    else:
        hidden = f"masks give away {percent(met.isolated)} ({percent(met.isolated_worst or 0.0)} at worst)"
    return f"{told}; {hidden}, and give away {percent(met.isolated_idle)} once all mix on without training"


def against_liars(ranking: Sequence[Advice]) -> str:
    """Return which of the candidates withstands the liars, fastest first, as a sentence."""
    met = [(advice, advice.liars) for advice in ranking if advice.liars]
    liars = met[0][1].liars
    n_free = max(GUARDED_READS, 4 * liars - 3)
    guarded = [(advice, one) for advice, one in met if one.is_guarded]
    if not guarded:
        return (
            f"Against {_counted(liars, 'liar')}: no candidate reads {GUARDED_READS} or more, from which on rows are "
            f"guarded; allow it with --degree-max {GUARDED_READS}, or as far as {n_free}, where no row can be overrun."
        )
    suited = [one for one in guarded if one[1].overrun_ever <= OVERRUN_ACCEPTED]
    best, figures = suited[0] if suited else min(guarded, key=lambda one: one[1].overrun_ever)
    worst = figures.overrun_worst
    where = f"in {figures.rounds} rounds" if worst is None else _at_worst(worst, figures.is_exhaustive)
    met_one = _none_or(figures.overrun_ever, "honest peer")
    found = (
        f"Against {_counted(liars, 'liar')}: take {best.name}, where {met_one} meets an overrun row {where}"
    )
    if not figures.joined_worst:
        found += "; liars can cut honest peers off from each other"
    if suited:
        return f"{found}."
    return f"{found}. From {n_free} reads on no row can be overrun: allow it with --degree-max {n_free}."


def against_colluders(ranking: Sequence[Advice]) -> str:
    """Return which of the candidates hides an adapter best under masks, as a sentence."""
    met = [(advice, advice.colluders) for advice in ranking if advice.colluders]
    colluders = met[0][1].colluders
    maskable = [one for one in met if one[1].is_maskable]
    if not maskable:
        return (
            f"Against {_counted(colluders, 'colluder')}: no candidate can be masked; masks want a fixed graph with at "
            f"least {GUARDED_READS} reads: allow it with --degree-max {GUARDED_READS}."
        )
    best, figures = min(maskable, key=lambda one: (one[1].isolated_worst or 0.0, one[1].isolated_idle))
    worst = _at_worst(figures.isolated_worst or 0.0, figures.is_exhaustive)
    found = f"take {best.name} with --mask pairs, which gives away {_none_or(figures.isolated, 'adapter')}"
    return (
        f"Against {_counted(colluders, 'colluder')}: {found} {worst}; once all mix on without training, "
        f"{_none_or(figures.isolated_idle, 'adapter')}."
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)
