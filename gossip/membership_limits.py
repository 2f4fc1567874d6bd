"""All times and limits of membership in one place, each with its source.

Seconds unless the name says otherwise. What a single frame may hold is limited in ``wire.py``.
"""

PRESENCE_S = 5.0
"""Announce ourselves this often (GossipSub withholds above 10 messages a second and peer, libp2p.md section 5)."""
PRESENCE_GAP_S = 1.0
"""And after every round, but never more often than this. Source: ours, a tenth of what GossipSub withholds."""
HEARTBEAT_S = 10.0
"""Ask everybody who is up for a heartbeat this often. Source: libp2p.md T7 asks for 10 to 20 s."""
HEARTBEATS_MISSED = 2
"""So many heartbeats missed in a row, and a peer is down. Source: guess; one may fall into a pause of the peer."""
REDIAL_FIRST_S = 1.0
"""First pause between attempts to reach a peer that is away; doubles. Also the pause between attempts to join."""
REDIAL_LONGEST_S = 60.0
"""Longest such pause. Source: guess."""
FORGET_S = 3600.0
"""A peer that has been away for this long is no longer dialed, and its place is free again. Source: guess."""
PEERS_MAX = 1000
"""Peers remembered (Bitcoin keeps a bounded table for the same reason)."""
ADDRESSES_PER_PEER = 4
"""Addresses remembered of each, and told of ourselves. Source: ours; a machine rarely has more that others reach."""
NAME_LETTERS = 32
"""Letters of a peer's display name that are kept. Source: ours, the width of a column in the terminal."""
STRIKES = 5
"""So many wire errors within ``STRIKES_S``, and a peer is cut off for as long (the shape of libp2p's fail2ban)."""
STRIKES_S = 600.0
"""See ``STRIKES``."""
