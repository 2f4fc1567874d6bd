"""How fast topologies converge: averaging and learning over simulated networks, in cells of a grid.

command     the commands of scripts/convergence.py
cell        what one experiment is: a frozen spec
run         runs a cell, whatever its kind
consensus   cells that average random values
learning    cells in which real nodes learn quadratics, and the watch over any that learn
tiny        cells in which adapters of a tiny language model learn
result      what comes out of a cell: a table of rounds and one record
sweep       many cells, kept on disk
statistics  groups of cells that differ only in their seed, their outcomes and curves
report      tables, plots and one HTML page of a sweep
record      figures of one topology, as JSON and as lines
pictures    one topology drawn: W, graph, spectrum; GraphML and GEXF
gallery     the pictures and the table of the documentation
"""
