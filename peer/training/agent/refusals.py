"""What goes together with learning by trial (``--task agent``), and what does not. Pure, but for the user's own
classes: they are imported here too, so that a name that is wrong is refused before anything is started.
"""

from __future__ import annotations

from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.training.agent.environments import environments_of

PROMPTING = ("prompt-tuning", "prefix-tuning")
"""Kinds of adapter that put tokens before the text, with which a model cannot go on writing where it was."""


def check_agent(config: PeerConfig) -> None:
    """Refuse what an agent cannot do, and what only an agent can.

    Raises:
        LocalError: says what, and a way out.
    """
    agent, data, privacy = config.agent, config.data, config.privacy
    if config.model.task != "agent":
        if agent.tasks or agent.eval_tasks:
            raise LocalError(
                "--tasks and --eval-tasks are for --task agent alone: give that task, or neither"
            )
        return
    if data.data or data.eval_data:
        raise LocalError(
            f"--task agent learns from environments, not from {', '.join(map(str, (*data.data, *data.eval_data)))}: "
            "give --tasks, and no --data"
        )
    if not agent.tasks:
        raise LocalError(
            "--task agent needs --tasks: the environments to practice in, such as --tasks reverse,sort"
        )
    for tasks in (agent.tasks, agent.eval_tasks):
        environments_of(tasks)
    if config.model.adapter in PROMPTING:
        raise LocalError(
            f"--task agent does not go with --adapter {config.model.adapter}, with which text cannot go on token "
            "by token: use lora, or full for a small model"
        )
    if privacy.dp_epsilon or privacy.canaries or privacy.audit:
        raise LocalError(
            "--dp-epsilon, --canaries and --audit are about rows of text, and an agent has none: leave them out"
        )
