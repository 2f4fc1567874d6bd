"""What travels between peers, how it is mixed, and who takes part: pure code, CPU tensors and bytes, no IO.

Two machines of one shape, ``handle(event, now) -> [action]``: the node (rounds) and the membership (who is there). In
reading order:

    adapter                an adapter as one flat float32 vector, and the layout of its tensors
    errors                 the two kinds of failure: ours and theirs
    manifest               all that must be equal between the peers of a run
    messages, wire         what peers say to each other, and as which bytes
    published              an adapter as published, and the last few of them: which answers a request
    events, node           the node's contract with the world, and the protocol
    neighbor, round        what the node remembers of each neighbor, and of the round it is in
    pipelines              the numbers of its rounds, and of the final merge
    deadline               how long a round waits for neighbors, learned from arrivals
    final_merge            the rounds after the last, in which all adapters become one
    settings               what a node runs with, and what a restart needs
    methods/               the catalogues: mixing, optimizers, codecs, feedback, guards; the pipeline of stages
    membership_events      the membership's contract with the world
    membership_limits      all its times and limits
    membership             who takes part: greeting, searching, heartbeats, goodbyes, bans
    members                its table: what is known of each peer
    introduction           what it says of ourselves, and how answers to that are judged
    joining                its attempts at the addresses that the user gave
    fault_kinds, faults    what can befall a peer; when and whom it befalls, as files say it
    simulation             many nodes on a virtual clock
    simulated_network      the clock, latency, loss, cuts and bad links of a simulation
    simulated_clocks       the clocks of its peers
    simulated_pulls        requests and transfers of adapters in it
    simulated_liveness     how its nodes know who is up, if their memberships do not find out
    simulated_membership   connections, questions and rumors of a simulation whose peers find each other
    byzantine              how members cheat in it
    simulated_faults       faults in it
    invariants             what must hold whatever happens
    quadratic              a network whose end point theory knows
    fault_trials           seeded networks with random faults
"""
