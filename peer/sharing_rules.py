"""What goes together with ``--share rollouts`` and ``--share both``; each refusal names a way out."""

from __future__ import annotations

from gossip.errors import LocalError
from gossip.methods.method_set import MethodNames
from peer.config import OPTIONS, PeerConfig

OF_WEIGHTS: dict[str, tuple[object, ...]] = {
    "factors": (),
    "mixing": (),
    "optimizer": (),
    "codec": (),
    "feedback": ("none",),
    "gamma": (),
    "budget_mb": (),
    "merge": ("none",),
    "average_last": (),
    "overlap": (),
    "personalize": (),
    "norm_cap": (),
    "robust": ("none",),
    "step_cap": (),
    "check_rows": (0,),
    "check_every": (),
    "check_slack": (),
    "private_head": (),
}
"""Options that say how adapters are shared and mixed -> what they may be, besides their default, where none are."""


def methods_with(config: PeerConfig, names: MethodNames) -> MethodNames:
    """Return the methods of a run: as they were asked for, or none where no adapters are shared.

    Raises:
        LocalError: something that was asked for does not go together with sharing rollouts.
    """
    share, privacy = config.mixing.share, config.privacy
    if share == "weights":
        return names
    if privacy.dp_epsilon:
        raise LocalError(
            f"--share {share} with --dp-epsilon {privacy.dp_epsilon:g}: answers tell of what a model has learned from "
            "our rows, and no noise is added to them, so that the promise would not hold: use --share weights, or no "
            "--dp-epsilon"
        )
    if privacy.mask != "none":
        raise LocalError(
            f"--share {share} with --mask {privacy.mask}: each peer's answers are read by themselves, so that hiding "
            "single adapters would hide little: use --share weights, or --mask none with --readers row"
        )
    if share == "both":
        return names
    for name, allowed in OF_WEIGHTS.items():
        value, option = config.option(name), OPTIONS[name]
        if value not in (option.default, *allowed):
            raise LocalError(
                f"{option.flag} {value} says how adapters are shared and mixed, and with --share rollouts none are: "
                f"leave {option.flag} out, or use --share both"
            )
    return MethodNames(merge="none")
