"""Ways of learning together, compared on equal terms: same text, splits, initial adapters, steps and tuning.

command     the commands of scripts/compare.py
method      what is compared, as one line of text: a topology or a baseline, and settings
trial       one run of one method: a frozen spec
design      what a user asks to be compared, and the trials that answer it
tuning      runs a comparison: chooses learning rates, then compares
run         runs one trial, a baseline or real nodes on a virtual clock
peers       the peers of a trial in memory
judge       measures adapters on validation and test rows
server      what a server makes of the adapters of a round, and their mean
record      the tables and the outcome of a trial, filled in round by round
private     learning with differential privacy, alone, with gossip and centrally; cached_model: its model, cheaply
private_text  SmolLM2 with differential privacy on thousands of rows
step_time   how long an optimizer step takes here
statistics  what a comparison came to: paired differences, gaps closed, losses at equal bytes
tables      the tables of the report
plots       the plots of the report
report      tables, plots and one HTML page of a comparison
"""
