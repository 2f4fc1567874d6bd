"""What a peer takes part in, as it is known once the training process has told what the run is made of."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

from gossip.errors import LocalError
from gossip.manifest import RunManifest
from gossip.methods.method_set import MethodSet
from gossip.node import GossipNode
from gossip.published import PublishedAdapter
from gossip.readers import Readers
from gossip.roster import roster_digest, rows_of
from gossip.wire import PAYLOAD_BYTES_MAX
from peer.checkpoint_files import Checkpoint
from peer.checkpoints import Home, HomeError
from peer.incarnation import begin_life
from peer.mask_keys import MaskSecrets
from peer.masks import Masks
from peer.network.identity import peer_id
from peer.run_manifest import manifest_of
from peer.run_plan import RunPlan
from peer.signing import Signer
from peer.training.frames import Ready
from topology.announced import Announced

MAY_CHANGE = frozenset({"rounds", "learning_rate", "schedule", "warmup_steps"})
"""Fields of the manifest that all peers of a run may change together, as when it is prolonged: what has been learned
stays what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRun:
    """A run that can begin, or go on.

    Args:
        plan: what the user asked for, with every name resolved.
        home: the locked home folder.
        me: our peer id.
        name: our display name.
        checkpoint: where we go on; None for a new run.
        ready: what the training process told.
        methods: the run's methods for its adapter.
        manifest: what must be equal among peers.
        signer: signs what we offer, in this life of ours.
        readers: who may read us.
        masks: what hides single adapters, in this life of ours; None = nothing does.
    """

    plan: RunPlan
    home: Home
    me: str
    name: str
    checkpoint: Checkpoint | None
    ready: Ready
    methods: MethodSet
    manifest: RunManifest
    signer: Signer
    readers: Readers
    masks: Masks | None

    @property
    def initial(self) -> PublishedAdapter | None:
        """The adapter that all peers began with, for readers that cannot make it; None where there is none such, or
        where it is too large to travel as it is."""
        too_large = 4 * self.ready.initial.spec.size > PAYLOAD_BYTES_MAX
        if self.methods.factor_rule.refactors or self.plan.config.mixing.share == "rollouts" or too_large:
            return None
        return PublishedAdapter(0, 0, "float32", self.ready.initial.flat.numpy().tobytes(), kind="initial")

    @property
    def announced(self) -> Announced | None:
        """What we announce of our data."""
        return self.plan.announced(self.ready)

    def node(self) -> GossipNode:
        """Return the node: at the beginning, or where the checkpoint left it."""
        checkpoint = self.checkpoint
        return GossipNode(
            self.me,
            checkpoint.state if checkpoint else self.ready.initial,
            self.plan.node_settings(self.methods, self.announced),
            random.Random(f"{self.plan.config.run.seed}/{self.me}"),
            snapshot=checkpoint.snapshot if checkpoint else None,
            initial=self.ready.initial,
            healthy=self.home.healthy() if checkpoint else None,
        )


def prepare_run(
    plan: RunPlan, home: Home, key: bytes, name: str, checkpoint: Checkpoint | None, ready: Ready
) -> PreparedRun:
    """Return the run that a training process is ready for; see ``PreparedRun``. A new life of ours begins with it.

    Args:
        key: the identity's 32 private key bytes.

    Raises:
        LocalError: a method does not fit the adapter, the roster lacks us, or the trainer does not do what it should:
            plant canaries, learn from rollouts.
        HomeError: the checkpoint is of another run; the manifest field that differs is named.
    """
    wanted = plan.config.privacy.canaries
    if ready.canaries != wanted:
        raise LocalError(
            f"--canaries {wanted}: this --trainer has planted {ready.canaries}. Leave the option out, or use "
            "local-steps"
        )
    share = plan.config.mixing.share
    if share != "weights" and not ready.takes_rollouts:
        raise LocalError(
            f"--share {share}: this --trainer learns from no rollouts (its train has no argument of that name). Leave "
            "the option out, or use a trainer that does"
        )
    methods = plan.methods(ready.initial.spec)
    manifest = manifest_of(plan, ready, methods)
    if checkpoint:
        _check_same_run(home, checkpoint, manifest)
    return PreparedRun(
        plan=plan,
        home=home,
        me=peer_id(key),
        name=name,
        checkpoint=checkpoint,
        ready=ready,
        methods=methods,
        manifest=manifest,
        signer=Signer(key, manifest.fingerprint, partial(begin_life, home.path)),
        readers=plan.readers(peer_id(key)),
        masks=_masks(plan, key, manifest.fingerprint),
    )


def _masks(plan: RunPlan, key: bytes, run: bytes) -> Masks | None:
    if not plan.masked:
        return None
    roster = roster_digest(plan.topology, plan.roster)
    return Masks(run, roster, rows_of(plan.topology, plan.roster), MaskSecrets(key, run, roster))


def _check_same_run(home: Home, checkpoint: Checkpoint, manifest: RunManifest) -> None:
    for name, value in manifest.fields().items():
        if name in MAY_CHANGE:
            continue
        before = checkpoint.run.get(name)
        if before != value:
            raise HomeError(
                f"{home.path} holds a run whose {name} is {before!r}, now it would be {value!r}: "
                "use the settings it was begun with, or another --home"
            )
