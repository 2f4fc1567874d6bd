"""The contract of ``Membership`` with the world: what may happen to it, and what it may ask for.

The shell (``peer/membership.py``) and the simulator both turn the world into events and carry actions out, in the order
in which they are returned. Every ``Dial`` ends in exactly one ``Dialed`` or ``DialFailed``, every ``Ask`` in exactly
one ``Answered`` or ``AskFailed``, every ``SetTimer`` in one ``TimerFired``, however late: what has become of no
interest meanwhile is recognized by its errand and ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossip.errors import LocalError, RemoteError
from gossip.events import PeerDown, PeerUp
from gossip.messages import Claim, Evidence, Hello, Message, Ping, Presence


class Incompatible(LocalError):
    """A peer we were told to join takes part in another run."""

    exit_code = 5


class NobodyThere(LocalError):
    """None of the peers we were told to join could be reached."""

    exit_code = 3


# -- errands: what a dial, a question or a timer is for. ``step`` never repeats, so that late answers are told apart.


@dataclass(frozen=True, slots=True)
class Search:
    """Reach a peer and greet it, again and again until it is up or forgotten."""

    peer: str
    step: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Hear whether a peer that is up still answers."""

    peer: str
    step: int


@dataclass(frozen=True, slots=True)
class Joining:
    """Reach and greet whoever is at an address that the user gave; ``number``: that of its ``Join``."""

    number: int
    address: str
    step: int


@dataclass(frozen=True, slots=True)
class DialBack:
    """Find out whether a peer that is up, and may well be connected, can be dialed at an address that it claims."""

    peer: str
    address: str
    step: int


Journey = Search | Joining | DialBack
"""What somebody is dialed for."""
Question = Search | Heartbeat | Joining
"""What somebody is asked for."""


@dataclass(frozen=True, slots=True)
class AnnouncementDue:
    """The next announcement of ourselves, after the one with this number."""

    number: int


@dataclass(frozen=True, slots=True)
class HeartbeatsDue:
    """The next heartbeat of everybody who is up."""


@dataclass(frozen=True, slots=True)
class JoinOver:
    """The time of a ``Join`` is over."""

    number: int


@dataclass(frozen=True, slots=True)
class DialsDue:
    """Dials that were held back may be due."""


Timer = AnnouncementDue | HeartbeatsDue | JoinOver | DialsDue | Search | Joining

# -- events


@dataclass(frozen=True, slots=True)
class Start:
    """We listen: ``me`` is our peer id, ``addresses`` are those under which others can dial us. What comes before it,
    other than ``Progressed``, is ignored. ``incarnation``: number of this life of ours, higher than all before."""

    me: str
    addresses: tuple[str, ...]
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class Join:
    """The user wants these addresses dialed, for up to ``within_s`` seconds; ends in ``JoinEnded(number)``.

    ``required``: whether at least one must be reached and none may be of another run; otherwise failures are told. What
    was not reached in time is tried again, ever less often, until it is.
    """

    number: int
    addresses: tuple[str, ...]
    within_s: float
    required: bool


@dataclass(frozen=True, slots=True)
class Dialed:
    """There is a connection to ``peer``, whose handshake has proven who it is; for a ``DialBack``: there was one."""

    errand: Journey
    peer: str


@dataclass(frozen=True, slots=True)
class DialFailed:
    """No address answered, or (``LocalError``) what was to be dialed is no address."""

    errand: Journey
    error: RemoteError | LocalError


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to our question; it may be a ``Refusal``."""

    errand: Question
    answer: Message


@dataclass(frozen=True, slots=True)
class AskFailed:
    """Our question got no answer, or none that can be read."""

    errand: Question
    error: RemoteError


@dataclass(frozen=True, slots=True)
class Asked:
    """A peer asks a control question. The actions hold one ``Answer``, or none if it was neither hello nor ping."""

    peer: str
    question: Message


@dataclass(frozen=True, slots=True)
class Heard:
    """An announcement, signed by ``author``, perhaps relayed by others."""

    author: str
    message: Message


@dataclass(frozen=True, slots=True)
class Connected:
    """There is a connection to a peer now, and there was none."""

    peer: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The last connection to a peer is gone."""

    peer: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """We have completed ``round`` rounds."""

    round: int


@dataclass(frozen=True, slots=True)
class Suspect:
    """A peer has missed a deadline: ask it for a heartbeat now."""

    peer: str


@dataclass(frozen=True, slots=True)
class Strike:
    """A peer did what no honest peer does; ``reason``: stable word."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Offered:
    """We were offered an adapter under this claim, whose signature holds."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that was set has run out."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class Leave:
    """We are leaving: nobody is dialed or asked any more, and a join under way ends without a word."""


Event = (
    Start | Join | Dialed | DialFailed | Answered | AskFailed | Asked | Heard | Connected | Disconnected | Progressed
    | Suspect | Strike | Offered | TimerFired | Leave
)  # fmt: skip

# -- actions


@dataclass(frozen=True, slots=True)
class Dial:
    """Make sure that there is a connection: dial all addresses at once, the first that answers counts.

    For a ``DialBack`` dial whether there is a connection or not, and close what comes of it.

    Args:
        peer: whom the addresses name, nobody needs to be dialed if there is a connection already; empty = dial anyway.
        afresh: close present connections first; they no longer bring answers.
    """

    errand: Journey
    addresses: tuple[str, ...]
    peer: str = ""
    afresh: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a peer a control question. Questions do not wait for each other."""

    errand: Question
    peer: str
    question: Hello | Ping


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the question just asked."""

    message: Message


@dataclass(frozen=True, slots=True)
class Announce:
    """Spread this among all peers of the run, best effort."""

    presence: Presence | Evidence


@dataclass(frozen=True, slots=True)
class Drop:
    """Close all connections to a peer."""

    peer: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Post ``TimerFired(timer)`` after ``delay_s`` seconds."""

    timer: Timer
    delay_s: float


@dataclass(frozen=True, slots=True)
class Post:
    """Give this event to the node."""

    event: PeerUp | PeerDown


@dataclass(frozen=True, slots=True)
class Tell:
    """A line for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reject:
    """Count a peer that was turned away; ``reason``: stable word."""

    reason: str


@dataclass(frozen=True, slots=True)
class JoinEnded:
    """The ``Join`` with this number is over. ``error``: why it failed; None = go on."""

    number: int
    error: LocalError | None


Action = Dial | Ask | Answer | Announce | Drop | SetTimer | Post | Tell | Reject | JoinEnded
