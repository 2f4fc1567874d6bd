"""The laboratory: experiments, comparisons and local networks, and what they share. It sits above the program.

The two rooms inside know the files of this folder, and not each other:
  convergence/     how fast topologies converge: cells, in sweeps
  comparison/      ways of learning together on equal terms: trials, tuned and compared

What every experiment goes through:
  spec             what a spec is: a frozen dataclass named by its hash; grids of them
  sweep            runs specs, here, in a process pool or on Ray; what is finished stays so
  progress         says on stderr how far a sweep is
  results          results on disk: a folder a spec, Parquet tables for all, a manifest of their origin
  statistics       means and 95 % intervals over paired seeds
  page             tables as text, Markdown and HTML, and a page that holds its pictures
  figures          figures as PNG bytes
  records          what commands measured, as the JSON files of docs/records/
  evidence         the figures of README.md and docs/, written from records
  files            files that a user names: read with refusals in one line, written whole
  threads          one thread for numerical libraries
  command          how a script with long commands ends

What is learned from:
  workloads        texts in groups, the model and settings that learn them, laid out as files for some peers
  partition        how rows are shared out among peers
  corpus           texts out of packages

On its own:
  privacy_bounds   what promises of differential privacy are worth against the best guess
  correlated_noise what noise that cancels between pairs of peers would gain

A network of real processes:
  testnet/         starts peers, watches them, and measures what they came to

As a program:
  program          how a command of the laboratory runs: from scripts/ or as `peer COMMAND`
  checkout         what is known of the repository, where there is one
"""
