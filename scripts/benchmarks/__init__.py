"""How fast everything is: what ``scripts/bench.py`` measures, a file a section.

    command       the catalogue of sections, the table and bench.jsonl
    rows          a figure with its target; a stopwatch
    mixing        mixing adapters beside copying memory
    codecs        encoding and decoding
    masks         masking a payload, unmasking a sum
    simulation    a thousand nodes on the virtual clock
    transport     the network beside TLS and the library's default path; certificate: for that TLS
    topology      consensus and spectra of 10,000 peers
    rounds        whole rounds without training, before and after a kill -9
    methods       a round of every kind of method beside local steps
    dp            a local step with differential privacy beside a plain one
    memory        what a peer shares with nobody
    learning      the default demo, as a figure

Each section has ``rows(quick)``, which yields figures as they come. With ``quick`` it runs the same code on a size that
takes seconds, so that tests can start every section; its figures then mean nothing.
"""
