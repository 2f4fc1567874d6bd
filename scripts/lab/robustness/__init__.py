"""What lying members cost the honest: attacks on real training and mixing, in cells of a grid.

command   the command ``robustness`` of scripts/compare.py
cell      what one run is: a frozen spec
poison    attacks on data and on training, and how often a backdoor opens
run       runs a cell: real trainers, nodes, wire and codecs on a virtual clock
design    the parts of the experiment, and their cells
report    tables and picture of what is finished
"""
