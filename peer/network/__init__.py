"""Transports: authenticated byte streams between peers, and small announcements to all of them.

Nobody outside this room knows which transport it has: that is chosen by the scheme of the address.

    transport             the seam: what a transport is, and what all of them keep to
    catalogue             scheme of an address -> transport
    identity              the private key of a peer, and the peer id that follows from it
    limits                all limits, and where they come from
    pace                  how fast others may go
    admission             which connections stay, and who is let in
    handshakes            incoming handshakes: whose turn it is
    addresses             addresses over TCP: check them, resolve names, find our own

    memory                the in-memory twin: peers of one process
    memory_stream         its streams

    libp2p                the real network: puts the following together
    libp2p_host           the library's host with TCP, Noise, yamux and nothing else
    libp2p_connections    who is connected, and how many may be
    libp2p_serving        streams that others open, within limits
    libp2p_probe          who is at an address: the handshake and nothing after it
    libp2p_announcements  the streams on which neighbors relay announcements
    libp2p_rpc            what they say there: the strict gate
    gossipsub             what is relayed to whom
    libp2p_adapters       our connections and streams in the library's shapes
    dialing               who is dialed, and where

    protocol_stream       what a stream is for: agreement on a protocol
    muxed_stream          one of many streams of a connection: windows and ends
    yamux                 all streams of a connection: the wire format
    secure_link           encrypted messages over a socket, many per system call

Only ``libp2p*.py`` import libp2p.
"""
