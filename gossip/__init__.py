"""What travels between peers, how it is mixed, and who takes part: pure code, CPU tensors and bytes, no IO.

Two machines of one shape, ``handle(event, now) -> [action]``: the node (rounds) and the membership (who is there). In
reading order:

    adapter                an adapter as one flat float32 vector, and the layout of its tensors
    errors                 the two kinds of failure: ours and theirs
    manifest               all that must be equal between the peers of a run
    messages, wire         what peers say to each other, and as which bytes
    published              an adapter as published, and the last few of them: which answers a request
    roster, readers        W over a roster; who may read what is published
    fixed_point            adapters as integers, in which masks cancel
    masked_sums            masks through which a reader sees the sum of its row and no more
    mask_rules             what goes together with them
    rollouts               answers to tasks as they travel, and a buffer of those received
    offers                 what an offer of this run must be to answer a question
    claims                 what peers have signed, and when that proves that one of them lies
    events, node           the node's contract with the world, and the protocol
    catching_up            what a node takes over from the others when it comes late
    whole_adapters         present adapters as they are, which it takes over
    company                who takes part as far as the node knows, and whom of them it reads
    row_reading, pacing    whom a round asks, and how long it waits
    rollout_exchange       its own rollouts, and those of others
    neighbor, round        what the node remembers of each neighbor, and of the round it is in
    health, round_end      what own held-out losses say of a mix, and what is kept of it
    sightings              what it has seen of each neighbor, for those who watch
    pipelines              the numbers of its rounds, and of the final merge
    tail_average           the mean over the last rounds, which goes into that merge
    deadline, pacing       how long a round waits for neighbors, learned from arrivals
    final_merge            the rounds after the last, in which all adapters become one
    settings               what a node runs with, and what a restart needs
    methods/               the catalogues: mixing, optimizers, codecs, feedback, guards, robust rules, merges; the
                           pipeline of stages
    membership_events      the membership's contract with the world
    membership_limits      all its times and limits
    membership             who takes part: greeting, searching, heartbeats, goodbyes, bans
    member_places          its table: what is known of each peer, and who gets a place in it
    members                who is up, what is said of that, and what others are told
    told_addresses         which of the addresses that others tell are worth keeping
    searching              reaching peers that are away, proving where others can be reached
    dials, token_bucket    how many dials at a time, and how often
    cut_offs, strikes      who is cut off: for repeated faults, for what it has signed
    notices                how often the user is told of others
    introduction           what it says of ourselves, and how answers to that are judged
    joining                its attempts at the addresses that the user gave or that we remember
    fault_kinds, faults    what can befall a peer; when and whom it befalls, as files say it
    simulation             many nodes on a virtual clock
    simulated_network      the clock, latency, loss, cuts and bad links of a simulation
    simulated_clocks       the clocks of its peers
    simulated_pulls        requests and transfers of adapters in it
    simulated_liveness     how its nodes know who is up, if their memberships do not find out
    simulated_membership   connections, questions and rumors of a simulation whose peers find each other
    attacks, byzantine     what members who lie send in place of their adapters; how they serve it
    simulated_faults       faults in it
    invariants             what must hold whatever happens
    quadratic              a network whose end point theory knows
    fault_trials           seeded networks with random faults
"""
