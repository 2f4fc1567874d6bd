"""A whole network on one machine: real ``peer run`` processes over real libp2p, and the baselines to judge it by.

    config       what network to run: the options of the command
    shards       who learns from which file
    settings     what the demo sets where the user says nothing
    plan         the processes of a regime, each with its command line
    every_shard  the trainer of central training, which draws from all peers' texts alike
    view         what one process has told so far
    run          starts the processes, reads their events, ends them; all regimes, one after another
    samples      what models from scratch write: the content of samples.txt
    summary      how well it learned: the content of summary.json
    screen       the live table, and plain lines where there is no terminal
    curves       the picture of loss against tokens and seconds
    command      the command line; the tables of its end

Regimes: *gossip* (all peers together), *local* (the same peers, each alone), *central* (one peer with everybody's text
that takes as many tokens as all of them in as small steps, which is the strongest baseline) and *central-large* (one
that takes as many steps as a peer, on as many times the batch). All are the same program with other flags, so a
difference between them is a difference of learning together.
"""
