"""The command line: ``peer init``, ``id``, ``run``, ``methods``, ``eval``, ``chat``, ``audit``, ``privacy``,
``topology``, ``doctor`` and ``explain``.

More come with what is installed (``installed_commands.py``): ``peer testnet``, ``convergence`` and ``compare``.
Flags beat ``PEER_*`` environment variables, which beat the TOML file of ``--config``, which beats the defaults of
``PeerConfig``. Nothing heavy is imported until a command needs it, so that ``--help`` answers at once. Every expected
failure is one ``LocalError``: its text goes to stderr and its ``exit_code`` to the shell (docs/exit-codes.md).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import App, Parameter
from cyclopts.config import Env, Toml
from platformdirs import user_state_path

from gossip.errors import LocalError
from peer.audit_cli import audit
from peer.config import OPTIONS, PeerConfig
from peer.installed_commands import find_installed_command, list_installed_commands
from peer.run_help import ALL, RunHelp, hidden_options
from peer.topology_cli import topology

ENVIRONMENT_PREFIX = "PEER_"


def version() -> str:
    """Return what is installed, and the version of the protocol: peers of two protocols cannot talk."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    from gossip.manifest import PROTOCOL_VERSION

    try:
        installed = version_of("gossip-peer")
    except PackageNotFoundError:
        installed = "(run from a folder, not installed)"
    return f"gossip-peer {installed}, protocol {PROTOCOL_VERSION}"


app = App(
    name="peer",
    version=version,
    help="Fine-tune one language model together: peers exchange adapters, no server, no text leaves.",
    default_parameter=Parameter(negative_iterable=(), consume_multiple=True, show_env_var=False),
    config=[Env(ENVIRONMENT_PREFIX, command=False)],
)
app.meta.default_parameter = Parameter(show_env_var=False)

Error = TypeVar("Error", bound=BaseException)

MACHINE_EXIT_CODE = 8
"""The machine is at its limits: files, space, a disk that fails."""

HomeOption = Annotated[Path | None, Parameter(help="Folder of identity and checkpoints.")]
AdapterOption = Annotated[Path, Parameter(help="Folder of a PEFT adapter, e.g. HOME/adapter.")]


def home_path(home: Path | None) -> Path:
    """Return the home folder that was asked for, or the user's default one."""
    return home or user_state_path("gossip-peer", appauthor=False)


app.command(topology)
app.command(audit)


@app.command
def init(*, home: HomeOption = None) -> None:
    """Make this peer's identity: a key file that only you can read."""
    from peer.durable import keep_folder, told
    from peer.network.identity import create_identity, peer_id

    path = home_path(home)
    try:
        keep_folder(path, mode=0o700)
    except OSError as error:
        raise LocalError(
            f"cannot make the home folder {path}: {told(error)}; or choose another --home"
        ) from error
    print(
        f"{peer_id(create_identity(path))}\nidentity written to {path}; back it up, whoever has it is this peer"
    )


@app.command(name="id")
def show_id(*, home: HomeOption = None) -> None:
    """Print this peer's id."""
    from peer.network.identity import load_identity, peer_id

    print(peer_id(load_identity(home_path(home))))


@app.command(
    help_formatter=RunHelp(everything=False),
    help_epilogue=f"{hidden_options()} options for experts: peer run {ALL}. Each option may also stand in a TOML file "
    "or in the environment.",
)
def run(
    config: Annotated[PeerConfig, Parameter(name="*")] = PeerConfig(),  # noqa: B008 - frozen
    *,
    json: Annotated[
        bool, Parameter(negative=(), help="Print events as JSON lines (docs/events.md).")
    ] = False,
) -> int:
    """Take part in a run: learn from your data, and read the adapters of neighbors.

    Starts a new group, or joins one with --join. Started again in the same home, it goes on where it stopped. Only
    those can connect who know the group's secret, which stands in the line to join with.
    """
    from peer.inputs import check_inputs

    check_inputs(config)
    if not json:
        print("loading libraries; this takes some seconds", flush=True)
    # Heavy imports (torch, libp2p: seconds) happen here, before the event loop runs, because they would block it.
    import trio

    from peer.checkpoints import open_home
    from peer.journal import Journal, JsonPrinter, SentencePrinter
    from peer.network.catalogue import transport_for
    from peer.network.group import Group, secret_of
    from peer.network.identity import load_or_create_identity
    from peer.network.limits import Limits
    from peer.run_plan import plan_run
    from peer.runtime import run_peer

    plan = plan_run(config)
    with open_home(home_path(config.run.home)) as home:
        key = load_or_create_identity(home.path)
        network = config.network
        begins = not network.join and not home.has_checkpoint
        secret = secret_of(home.path, network.secret, is_open=network.open, begins=begins)
        plan = dataclasses.replace(plan, config=config.with_options(secret=secret, home=home.path))
        factory = transport_for(
            network.listen,
            private_key=key,
            group=Group.of(secret, network.allow),
            announce=network.announce,
            limits=Limits.of(network.connections_max),
        )
        printer = JsonPrinter(sys.stdout) if json else SentencePrinter(sys.stdout)
        journal = Journal(home.open_journal(), printer)
        try:
            signal = trio.run(run_peer, plan, home, key, factory, journal)
        finally:
            journal.close()
    return 128 + signal if signal else 0


@app.command
def methods() -> None:
    """List what --factors, --mixing, --optimizer, --codec, --feedback, --robust and --merge may be."""
    from gossip.methods.catalogue import signatures
    from peer.run_plan import CATALOGUES

    for option, catalogue in CATALOGUES.items():
        print(f"--{option}")
        lines = signatures(catalogue)
        width = max(map(len, lines))
        for written, doc in lines.items():
            print(f"  {written:<{width}}  {doc}")


@app.command(name="eval")
def evaluate(
    *,
    adapter: AdapterOption,
    data: Annotated[tuple[Path, ...], Parameter(help="Text files to measure on, all of their rows.")],
    max_length: Annotated[int, Parameter(help="Tokens per sequence.")] = 64,
) -> None:
    """Measure an adapter's loss on your files next to the base model's; how many labels are right, if it gives labels.

    The base model knows no labels. What compares is always naming the commonest label of the file.
    """
    from peer.training.inference import measure

    for number, result in enumerate(measure(adapter, data, max_length)):
        if result.accuracy is None:
            unit, columns = "nats per token", {"base": f"{result.base:.3f}", "adapter": f"{result.loss:.3f}"}
        else:
            unit = "nats per text; commonest: accuracy of always naming the commonest label"
            columns = {"loss": f"{result.loss:.3f}", "accuracy": f"{result.accuracy:.1%}"}
            columns["commonest"] = f"{result.commonest:.1%}"
        if number == 0:
            print(_row("file", *columns), f"  ({unit})")
        print(_row(str(result.file), *columns.values()))


def _row(file: str, *columns: str) -> str:
    return " ".join([f"{file:40}", *(f"{column:>9}" for column in columns)])


@app.command
def chat(
    *,
    adapter: AdapterOption,
    max_new_tokens: Annotated[int, Parameter(help="Longest answer, tokens.")] = 64,
) -> None:
    """Talk to the model with an adapter; an empty line ends it."""
    from peer.training.inference import Conversation

    conversation = Conversation(adapter, max_new_tokens)
    print("(an empty line ends)")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if not line:
            return
        print(conversation.answer(line))


@app.command
def privacy(
    *,
    home: HomeOption = None,
    json: Annotated[bool, Parameter(negative=(), help="Print a JSON list and nothing else.")] = False,
) -> None:
    """Show what training with --dp-epsilon has spent of your data's privacy, what is left, and what that promises."""
    from peer.privacy_cli import show_privacy

    show_privacy(home_path(home), as_json=json)


@app.command(help_formatter=RunHelp(everything=False))
def doctor(
    config: Annotated[PeerConfig, Parameter(name="*")] = PeerConfig(),  # noqa: B008 - frozen
) -> int:
    """Look whether this machine is ready for a run with these options; changes nothing, connects to nobody."""
    from peer.doctor import examine

    found = examine(config, home_path(config.run.home))
    for name, finding in found.items():
        print(f"{finding.verdict:5} {name:10} {finding.told}")
    return 2 if any(finding.verdict == "wrong" for finding in found.values()) else 0


@app.command
def explain(code: Annotated[int, Parameter(help="An exit code of peer, which a shell has in $?.")]) -> None:
    """Say what an exit code means, and whether starting again helps."""
    from peer.exit_codes import explain as words

    print(words(code))


@app.meta.default
def entry(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[
        Path | None, Parameter(help="TOML file with any of the options of the command, e.g. lora_r = 4.")
    ] = None,
) -> int | None:
    """Read the configuration file, then run the command."""
    sources: list[Env | Toml] = [Env(ENVIRONMENT_PREFIX, command=False)]
    if config is not None:
        if not config.is_file():
            raise LocalError(f"--config {config}: there is no such file")
        sources.append(Toml(config, must_exist=True, use_commands_as_keys=False))
    app.config = sources
    code: int | None = app(tokens)
    return code


def check_environment(environment: dict[str, str]) -> None:
    """Refuse ``PEER_*`` variables that are no option, with a suggestion: a typo must not be silently ignored.

    Raises:
        LocalError: names the variable.
    """
    options = [*OPTIONS, "json", "adapter", "max_new_tokens"]
    known = {ENVIRONMENT_PREFIX + option.upper() for option in options}
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise LocalError(f"the environment variable {name} is not an option of peer.{hint}")


OWN_COMMANDS = frozenset(app)


def run_command(words: Sequence[str]) -> int | None:
    """Run a command of ours, or one that another package above us brings along; return its exit code."""
    if ALL in words:
        app["run"].help_formatter = RunHelp(everything=True)
        words = ["--help" if word == ALL else word for word in words]
    installed = find_installed_command(words, OWN_COMMANDS)
    if installed is not None:
        return installed()
    list_installed_commands(app)
    code: int | None = app.meta(words)
    return code


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; our own bugs leave a traceback and exit code 1.

    Args:
        words: the command; default: this process's arguments.
    """
    try:
        check_environment(dict(os.environ))
        code = run_command(sys.argv[1:] if words is None else words)
    except* LocalError as group:
        error = _first(group)
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except* KeyboardInterrupt:
        code = 130
    except* BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except* Exception as group:  # noqa: BLE001 - the last stop: whatever arrives here is our bug, or the machine's
        code = _end_unexpected(group)
    sys.exit(code or 0)


def _end_unexpected(group: BaseExceptionGroup[Exception]) -> int:
    """Tell of an error that nothing expected, and return the exit code: of a machine at its limits, or of our bug."""
    from peer.durable import is_of_the_machine, told

    refusals, others = group.split(is_of_the_machine)
    if refusals and not others:
        error = _first(refusals)
        assert isinstance(error, OSError)
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{told(error)}; what was saved is safe", file=sys.stderr)
        return MACHINE_EXIT_CODE
    traceback.print_exception(group)
    print("error: this is a bug of gossip-peer, please report it with the lines above", file=sys.stderr)
    return 1


def _first(group: BaseExceptionGroup[Error]) -> Error:
    error: Error | BaseExceptionGroup[Error] = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    main()
