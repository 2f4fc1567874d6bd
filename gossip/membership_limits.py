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
RUMOR_FORGET_S = 600.0
"""The same for one that has never answered us. Source: guess; whoever is alive announces itself again."""
ANCHORS = 8
"""Of the peers that are away, so many are searched for ever: those that were up longest. They bring a partition that
outlasts ``FORGET_S`` together again. Source: Bitcoin keeps 2 anchors; 8 survive six liars among them."""
REMEMBERED = 16
"""Addresses kept over a restart, those of the peers that were up longest first. Source: as ``PLACES_PER_SOURCE``."""
PEERS_MAX = 1000
"""Peers remembered (Bitcoin keeps a bounded table for the same reason; ux-reliability B7)."""
RUMORS_MAX = 256
"""Places of the table that peers may take which have never answered us. Source: ours, a quarter of the table."""
PLACES_PER_SOURCE = 16
"""Such places that one peer may fill with those it names (ux-reliability B7: Bitcoin's buckets)."""
ADDRESSES_PER_PEER = 4
"""Addresses remembered of each, and told of ourselves (B7); a machine rarely has more that others reach."""
ADDRESS_LETTERS = 256
"""Longest address that is taken from others. Source: ours; the longest over TCP with an IPv6 host has 120."""
NAME_LETTERS = 32
"""Letters of a peer's display name that are kept. Source: ours, the width of a column in the terminal."""
DIAL_S = 20.0
"""A dial ends after this, however many addresses it has; the next one begins with another of them. Source: a little
more than a transport gives one address (15 s, libp2p.md T7)."""
DIALS_MAX = 8
"""Dials under way at a time. Source: Bitcoin fills 8 outgoing connections."""
TRUSTED_DIALS_MAX = 6
"""Of them, those to addresses that the user gave or where the peer has answered us before; the rest is for rumors."""
RUMOR_DIALS_MAX = 4
"""Of them, those to addresses that are only claimed: a dial that nobody answers holds its place for ``DIAL_S``."""
RUMOR_DIALS_PER_S, RUMOR_DIALS_BURST = 5.0, 64.0
"""Such dials in all, on average and at once: a newcomer finds a group of 64 at once, and whoever makes peers up gets
no more than 5 a second out of us towards others. Source: ours; 34 to 65 were seen without a limit."""
SOURCE_DIALS_PER_S, SOURCE_DIALS_BURST = 1.0, 16.0
"""The same for those that one peer has claimed or named. Source: the burst is ``PLACES_PER_SOURCE``; rate: guess."""
SOURCES_MAX = 256
"""Peers whose dials are counted. Source: as ``RUMORS_MAX``."""
DIALS_DUE_S = 0.5
"""While rates hold dials back, look again this often. Source: ours, a fraction of a second's allowance."""
PROOF_PAUSE_S, PROOF_PAUSE_LONGEST_S = 10.0, 600.0
"""Pauses between attempts to prove a claimed address of a peer that is up; they double. Source: guess; behind a router
none will ever be proven."""
STEADY_S = 60.0
"""Who was up for shorter than this and is lost, flaps. Source: as ``REDIAL_LONGEST_S``."""
FLAPS_MAX = 3
"""So many times in a row, and it is no longer dialed at once when it is lost, but after a pause. Source: guess."""
STRIKES = 5
"""So many wire errors within ``STRIKES_S``, and a peer is cut off for as long (the shape of libp2p's fail2ban)."""
REFUSALS = 20
"""The same for greetings of another run: a user who mends a command line needs a few. Source: guess."""
STRIKES_S = 600.0
"""See ``STRIKES``."""
STRIKERS_MAX = 1000
"""Peers whose strikes are remembered, members or not. Source: as ``PEERS_MAX``."""
NOTICES_PER_PEER, NOTICE_S = 4.0, 60.0
"""The user is told so often that the same peer came, or went, and then once in so many seconds. Source: guess; one that
is started anew a few times is told of each time."""
REFUSED_NOTICE_S = 3600.0
"""And once in so many that it is of another run. Source: guess."""
NOTICES_PER_S, NOTICES_BURST = 1.0, 128.0
"""And such lines of all peers together. Source: guess; a group of 64 comes and goes without one being left out."""
NOTICED_MAX = 1000
"""Peers, and kinds of lines, of which it is remembered what was said. Source: as ``PEERS_MAX``."""
