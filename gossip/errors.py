"""The two kinds of failure: ours and theirs.

``LocalError`` is our bug or our configuration: it propagates and stops the peer with a message a user can act on.
``RemoteError`` is data about another peer: counted, perhaps penalized, never a crash.
"""


class LocalError(Exception):
    """We or our configuration did wrong; the message says what happened, where, and what to do.

    Attributes:
        exit_code: what the command line returns for it (table in docs/exit-codes.md).
    """

    exit_code = 2


class Diverged(LocalError):
    """Our own training came to a loss or an adapter that is not finite."""

    exit_code = 9


class RemoteError(Exception):
    """A peer sent something that we refuse. ``reason`` is a short stable word for counters, e.g. ``"digest"``."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
