"""Real peers under faults: what a network of processes does while it is broken on purpose, told in one page.

    command        the commands ``chaos`` and ``simulate`` of the testnet
    simulate       seeded simulations with random faults (gossip/fault_trials.py), as many as one likes
    spec           what to run and what befalls it: a TOML file
    light_trainer  local steps that cost next to nothing, with an end point that theory knows
    light_peer     a peer that takes them in its own process
    hostile        strangers and Byzantine members, a program of its own
    emulator       what a bad network does to packets: pure
    hub            the process that carries packets between namespaces, as the emulator says
    network        what carries packets: namespaces or proxies
    namespaces     a network namespace for each peer, whose packets go through the hub
    proxies        where there are no namespaces: a TCP proxy before each peer
    processes      a peer's process, started again and again; what it tells, and what it takes
    faults         carries out a schedule on processes, files and links
    run            a whole network from start to end
    judge          figures of what was recorded, and whether they hold
    report         the page
    specs/         churn, partition, a lossy network, liars

Faults are written in the language of ``gossip/faults.py``, which simulations share.
"""
