"""All limits of the network in one place: times, counts and rates that a transport keeps to, each with its source.

Two kinds of peers count here. **Newcomers** are connected, and we know who they are; nothing more. **Members** are
those whom the shell trusts (``Transport.trust``), after they have said hello. Newcomers share a few slots and little
time; everything else is for members, so that strangers can shut out each other only. Rates are token buckets
(``pace.py``): who exceeds one is read more slowly, and who floods is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a transport keeps to."""

    stall_s: float = 30.0
    """Seconds without any progress after which a connection is closed. Source: guess."""
    dial_s: float = 15.0
    """Time limit of a dial. Source: libp2p.md T7."""
    open_s: float = 15.0
    """Time limit of opening a stream, redial included. Source: libp2p.md T7."""

    connections_max: int = 64
    """Connections in all, both directions. Source: ux-reliability B7."""
    connections_per_peer_max: int = 4
    """Connections of one peer: two after simultaneous dials, more only while a dead one lingers. Source: guess."""
    newcomers_max: int = 16
    """Connections, of those in all, that others opened and that are not of members; at more, the oldest of the
    greediest address goes. Source: guess: a quarter, so that three quarters are a reserve for members."""
    newcomer_s: float = 15.0
    """Seconds that a connected peer has to become a member. Source: ``open_s``, for a hello takes one stream."""

    handshakes_max: int = 64
    """Incoming connections before or in the handshake; at more, the oldest of the greediest address goes.
    Source: guess."""
    handshake_s: float = 3.0
    """Silent sockets are dropped after it. Source: ux-reliability B7."""
    handshakes_per_s: float = 10.0
    """Incoming handshakes of one address, of which each costs 5 ms of our time (measured); others wait. Source: guess,
    a twentieth of a core."""
    handshakes_burst: float = 64.0
    """As many at once, for a group that starts behind one address. Source: ``connections_max``."""
    shut_out_s: float = 60.0
    """How long a peer that flooded us or kept breaking the rules is not let in. Source: guess."""

    streams_per_peer_max: int = 16
    """Streams of one member that are served at the same time; more are refused. Source: guess."""
    newcomer_streams_max: int = 4
    """The same of a newcomer, which needs one to say hello. Source: guess."""
    streams_max: int = 256
    """The same over all peers; no peer gets more than what is left for others. Source: guess."""
    newcomer_cost: float = 10.0
    """How many times what a newcomer does counts against the rates below. Source: guess; of 12 streams and 400 frames
    at once, and 3 and 100 a second, a hello takes three."""
    streams_per_s: float = 30.0
    """New streams of one peer, of which each costs 1 ms (measured). Source: guess; a fast run needs 4."""
    streams_burst: float = 120.0
    """As many at once. Source: guess; a round opens one a neighbor."""

    frames_per_s: float = 1000.0
    """Small frames of one peer: pings, window updates, resets, data below 4 KiB, of which each costs 1 us, and 0.1 ms
    if it comes alone and is answered (measured). Updates of windows that our own sending explains are not counted.
    Source: guess."""
    frames_burst: float = 4000.0
    """As many at once. Source: guess."""
    announcements_per_s: float = 100.0
    """Announcements that one neighbor relays to us, those heard before included; a new one costs 0.14 ms (measured).
    Source: 24 peers that announce once a second (``gossip/membership_limits.py``), four times over."""
    announcements_burst: float = 400.0
    """As many at once. Source: guess."""
    faults_burst: float = 3.0
    """Broken rules of a peer that cost it only the stream; at more, one of which is forgiven each ``fault_s``, it is
    shut out. Source: ux-reliability B7 (5 in 10 minutes), rounded down."""
    fault_s: float = 120.0
    """See ``faults_burst``."""
    flood_s: float = 10.0
    """Who is ahead of a rate by so many seconds floods us, and is shut out. Source: guess."""

    windows_per_connection_bytes: int = 64 << 20
    """Bulk receive window granted at once to one connection: four streams' worth. Source: guess."""
    windows_bytes: int = 256 << 20
    """The same for the whole host. Source: guess."""

    descriptors_reserve: int = 64
    """File descriptors, of those that the system allows us, that incoming connections leave free for our own files,
    pipes and dials; at most half of all. Source: guess."""

    @staticmethod
    def of(connections_max: int) -> Limits:
        """Return the limits with so many connections in all, a quarter of them for newcomers."""
        return Limits(connections_max=connections_max, newcomers_max=connections_max // 4)


DEFAULT_LIMITS = Limits()
