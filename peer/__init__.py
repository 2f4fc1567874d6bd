"""The program: everything that touches the world (sockets, disk, processes, models, the command line).

What is told, and to whom:

- ``journal_events``: one class per event, with its documentation and its sentence.
- ``audit_event``: the one of an audit; ``rate_event``: the one of a learning rate that was chosen;
  ``rollouts_event``: the one of rollouts that were shared; ``joining_event``: the one of coming to a run under way;
  ``left_out_event``: the one of a neighbor that is left out.
- ``journal_lines``: events as lines of JSON, and back.
- ``journal``: takes events to their readers: file, terminal, live views.
- ``journal_file``: the file among them, bounded.
- ``journal_page``: writes docs/events.md.
- ``odd_neighbors``: which neighbors of a round are worth a word.
- ``journal_words``: how its numbers are said.
- ``telling``: makes events of what the rooms know.

From the command line to a run:

- ``__main__``, ``cli``, ``audit_cli``, ``privacy_cli``, ``topology_cli``: the commands.
- ``options``, ``learning_options``, ``group_options``, ``config``: what an option is, and all of them, declared once.
- ``run_help``: what ``--help`` shows of them.
- ``inputs``: what can be refused at once, before anything heavy is imported.
- ``doctor``: whether this machine is ready; ``exit_codes``: what they mean.
- ``run_plan``: reads every name of a configuration, once; ``sharing_rules``: what goes together with sharing rollouts.
- ``run_manifest``: what makes a run the same run, and the line with which a friend joins it.
- ``prepared_run``: a run whose training process is ready.

Taking part:

- ``runtime``: the life of a peer, and its loop round the node.
- ``membership``, ``exchange``: who takes part; the conversations with them.
- ``standing``: whom we have greeted.
- ``publisher``: the serving side of pulls.
- ``mask_keys``, ``masks``, ``masked_reading``: the keys of masks, our masks, and reading sums of others'.
- ``signing``, ``incarnation``: what we stand by, and in which life.
- ``streams``: what follows from how each conversation ended.
- ``round_records``: what stays of a round.
- ``saving``: its checkpoint, on a disk that may refuse it.
- ``leaving``: how a user ends a run.
- ``personal``: the mix of the own and the common adapter, after a run.
- ``auditing``: what adapters of the run tell of our rows, at its end.
- ``model_card``: what whoever has the adapter should know of it.

On this machine:

- ``checkpoints``, ``checkpoint_files``, ``durable``: folders and files that survive a crash.
- ``tensor_file``: tensors as the content of a file, without copies.
- ``exported``: the adapter as others load it, kept up to the newest checkpoint.
- ``child_python``: how a child process finds our packages.

And three rooms that do not know the files above (but ``config``, ``options``, ``durable``, ``tensor_file`` and
``child_python``), nor each other, except that training may use the second:

- ``network/``: transports.
- ``privacy/``: what training with noise promises, counted; the ledger of what is spent.
- ``training/``: the training process: models, data, adapters, local steps.
"""
