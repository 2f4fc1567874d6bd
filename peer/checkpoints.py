"""What survives a crash: one folder per peer, locked by one process, with complete checkpoints or none.

A checkpoint is a folder (``peer/checkpoint_files.py``) that becomes visible by one rename after every byte of it has
reached the disk. It holds the adapter as it travels; from the newest one follows ``adapter/``, as others load it
(``peer/exported.py``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.membership_limits import REMEMBERED
from gossip.settings import NodeSnapshot
from peer.checkpoint_files import (
    HEALTHY,
    TRAINER_STATE,
    Checkpoint,
    OtherVersion,
    RunFields,
    complete,
    forget_trainer,
    load,
    trainer_state_in,
)
from peer.durable import (
    keep_folder,
    link,
    make_folder,
    publish_folder,
    remove_folder,
    remove_leftovers,
    rename,
    sync,
    told,
    write_atomically,
    write_new,
)
from peer.exported import bring_up_to_date
from peer.journal_file import JournalFile
from peer.network.catalogue import peer_of
from peer.training.frames import Export

LOCK = "lock"
JOURNAL = "journal.jsonl"
PEERS = "peers.json"
PEERS_BYTES_MAX = 64 * 1024
"""So much of that file is read; it holds 16 addresses of at most 256 letters. Source: ours."""
UNFINISHED = ".tmp"
"""Ending of the name of a checkpoint that is being written."""
DAMAGED = ".damaged"
"""Ending of the name of a checkpoint that was found damaged and put aside."""
DAMAGED_KEPT = 2
"""Damaged checkpoints that are kept for inspection; older ones go. Source: guess, as many as are kept of good ones."""

_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO}
"""Errors of reading that the next start would meet again; all others say nothing against the checkpoint."""


class HomeError(LocalError):
    """The home folder is in use, not writable, or holds no usable checkpoint."""

    exit_code = 7


class HomeGone(HomeError):
    """The home folder was removed or replaced while we ran: nothing more can be saved."""


class Home:
    """A peer's folder. Use ``open_home``, which holds the lock.

    Args:
        path: the folder.
        lock: descriptor of its locked file.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.adapter = path / "adapter"
        self.personal = path / "personal"
        self._lock = lock
        self._checkpoints = path / "checkpoints"
        keep_folder(self._checkpoints)
        sync(path)  # whoever made it may have died before this
        for folder in (path, self.adapter, self.personal, self._checkpoints, *self._newest_first()):
            remove_leftovers(folder)  # of a process that was killed while writing: never complete, never used
        for unfinished in self._checkpoints.glob(f"*{UNFINISHED}"):
            remove_folder(unfinished)

    def remember_peers(self, addresses: Sequence[str]) -> None:
        """Keep addresses of the run's other peers: after a restart they may not know where we are, so we look.

        Raises:
            HomeGone: there is no home any more.
            HomeError: the disk refused; those kept before are unharmed.
        """
        try:
            write_atomically(self.path / PEERS, json.dumps(list(addresses)).encode())
        except OSError as error:
            self.check()
            raise HomeError(f"cannot write {self.path / PEERS}: {told(error)}") from error

    def remembered_peers(self) -> tuple[tuple[str, ...], list[str]]:
        """Return the addresses kept last, and for people what is wrong with the file: they are only hints."""
        path = self.path / PEERS
        try:
            with path.open("rb") as file:
                kept = json.loads(file.read(PEERS_BYTES_MAX))
        except FileNotFoundError:
            return (), []
        except (OSError, ValueError, RecursionError) as error:
            return (), [f"{path} is damaged ({error}): the peers that it held are not looked for"]
        entries = kept if isinstance(kept, list) else [kept]
        addresses = tuple(entry for entry in entries if isinstance(entry, str) and _is_address(entry))
        bad = len(entries) - len(addresses)
        return addresses[:REMEMBERED], [f"{path}: skipped {bad} entries that are no addresses"] if bad else []

    def open_journal(self) -> JournalFile:
        """Return the journal's file, which goes on where it ended.

        Raises:
            HomeError: it cannot be written.
        """
        path = self.path / JOURNAL
        try:
            return JournalFile(path)
        except OSError as error:
            raise HomeError(
                f"cannot write the journal {path}: {told(error)}; or choose another --home"
            ) from error

    def begin(self, round: int, trainer_state: Path | None = None) -> Path:
        """Return a fresh, invisible folder for the checkpoint after ``round`` rounds; the trainer writes into it.

        Args:
            trainer_state: the trainer's file of an earlier checkpoint, for a round in which it does nothing.

        Raises:
            HomeGone: there is no home any more.
            HomeError: the disk refused; earlier checkpoints are unharmed.
        """
        path = self._unfinished(round)
        try:
            self.check()
            keep_folder(self._checkpoints)
            make_folder(path)
            if trainer_state is not None:
                link(trainer_state, path / TRAINER_STATE)  # files of checkpoints are never written again
        except OSError as error:
            refusal = self._refused(round, error)
            self.abandon(round)
            raise refusal from error
        return path

    def has_begun(self, round: int) -> bool:
        """Whether there is a folder for the checkpoint after ``round`` rounds."""
        return self._unfinished(round).is_dir()

    def abandon(self, round: int) -> None:
        """Give up the checkpoint begun after ``round`` rounds, and the space that it takes."""
        if self.has_begun(round):
            self._discard(self._unfinished(round))

    def commit(
        self,
        state: AdapterState,
        snapshot: NodeSnapshot,
        run: RunFields,
        export: Export,
        keep: int,
        is_healthy: bool = False,
    ) -> Checkpoint:
        """Complete the checkpoint begun for ``snapshot.round``, make it visible, and prune older ones to ``keep``.

        Besides those, the newest one is kept whose adapter was found in order. When this returns, the checkpoint
        survives kill -9 and power loss.

        Args:
            state: the adapter after mixing.
            snapshot: the node's own state.
            run: fields of the run manifest.
            export: how the adapter is written for others to load.
            keep: how many checkpoints to keep, at least 1.
            is_healthy: the adapter was found in order.

        Raises:
            HomeGone: there is no home any more.
            HomeError: the disk refused; earlier checkpoints are unharmed, and what was written of this one is removed.
        """
        temporary = self._unfinished(snapshot.round)
        final = temporary.with_suffix("")
        self.check()
        try:
            if is_healthy:
                write_new(temporary / HEALTHY, b"")
            complete(temporary, state, snapshot, run, export)
            publish_folder(temporary, final)
            for path in self._superfluous(keep):
                remove_folder(path)
            if export.is_whole:
                self._forget_optimizers()
        except OSError as error:
            if temporary.exists() and self._is_ours():
                self._discard(temporary)
            raise self._refused(snapshot.round, error) from error
        return Checkpoint(final, snapshot.round, state, snapshot, run, trainer_state_in(final))

    def _forget_optimizers(self) -> None:
        """Let only the newest checkpoint have the training process's file, which is twice as large as a whole model.

        Who must go on from an older one, because the newest is damaged, begins with a new optimizer.
        """
        for path in self._newest_first()[1:]:
            with contextlib.suppress(ValueError):  # damaged: whoever looks for the newest puts it aside
                forget_trainer(path)

    def export(self, folder: Path, state: AdapterState, export: Export) -> bool:
        """Let ``adapter`` or ``personal`` hold an adapter as others load it; return whether it had to be written.

        Raises:
            HomeGone: there is no home any more.
            HomeError: the disk refused; what others find there is whole, or has no weights.
        """
        self.check()
        try:
            return bring_up_to_date(folder, state, export)
        except OSError as error:
            self.check()
            raise HomeError(f"cannot write the adapter to {folder}: {told(error)}") from error

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest checkpoint that is whole, and a line for each newer one that is not.

        Damaged ones are renamed to ``*.damaged`` and kept for inspection.

        Raises:
            HomeError: there are checkpoints, but none is whole; or the newest one is of another version, or cannot be
                read just now: then none is put aside.
        """
        complaints: list[str] = []
        for path in self._newest_first():
            try:
                return load(path), complaints
            except (OSError, ValueError, TypeError, RecursionError) as error:
                if isinstance(error, OSError) and error.errno not in _DAMAGE:
                    raise HomeError(f"cannot read the checkpoint {path}: {told(error)}") from error
                complaints.append(
                    f"checkpoint {path.name} is damaged ({error}); kept as {self._put_aside(path)}"
                )
        if complaints:
            raise HomeError(
                "; ".join([*complaints, "no whole checkpoint is left"]) + f" in {self._checkpoints}"
            )
        return None, []

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return bool(self._newest_first())

    def check(self) -> None:
        """Do nothing if the home is still the one that we locked.

        Raises:
            HomeGone: it is not.
        """
        if not self._is_ours():
            raise HomeGone(
                f"the home folder {self.path} was removed or replaced while this peer ran: nothing more can be saved "
                "there. Put it back from a copy, or start with another --home"
            )

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._lock), (self.path / LOCK).stat())
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _refused(self, round: int, error: OSError) -> HomeError:
        """Return what to raise after the disk refused the checkpoint after ``round`` rounds."""
        self.check()
        return HomeError(
            f"cannot write the checkpoint of round {round} to {self._checkpoints}: {told(error)}; "
            "earlier checkpoints are unharmed"
        )

    def _discard(self, temporary: Path) -> None:
        """Give back the space that an incomplete checkpoint takes, if the disk lets us; the next start tries again."""
        with contextlib.suppress(OSError):
            remove_folder(temporary)

    def _put_aside(self, path: Path) -> str:
        """Give a damaged checkpoint a name under which it is not looked at, and return it; the oldest such go."""
        aside = path.with_suffix(DAMAGED)
        try:
            if aside.exists():
                remove_folder(aside)
            rename(path, aside)
            sync(self._checkpoints)
            for old in sorted(self._checkpoints.glob(f"*{DAMAGED}"), reverse=True)[DAMAGED_KEPT:]:
                remove_folder(old)
        except OSError as error:
            raise HomeError(f"cannot put the damaged checkpoint {path} aside: {told(error)}") from error
        return aside.name

    def _unfinished(self, round: int) -> Path:
        return self._checkpoints / f"round-{round:06d}{UNFINISHED}"

    def healthy(self) -> AdapterState | None:
        """Return the adapter of the newest whole checkpoint that was found in order; None if there is none."""
        for path in self._newest_first():
            if (path / HEALTHY).exists():
                with contextlib.suppress(OSError, ValueError, TypeError, RecursionError, OtherVersion):
                    return load(path).state  # if it is damaged, an older one will do
        return None

    def _superfluous(self, keep: int) -> list[Path]:
        """Return all checkpoints but the newest ``keep`` and the newest that was found in order."""
        paths = self._newest_first()
        healthy = [path for path in paths if (path / HEALTHY).exists()][:1]
        return [path for path in paths[keep:] if path not in healthy]

    def _newest_first(self) -> list[Path]:
        """Return the folders of checkpoints that were completed."""
        return sorted((path for path in self._checkpoints.glob("round-*") if not path.suffix), reverse=True)


@contextmanager
def open_home(path: Path) -> Iterator[Home]:
    """Create the folder if needed, lock it for this process, and yield it.

    Raises:
        HomeError: another process has it (its pid is named), or it cannot be written.
    """
    try:
        keep_folder(path, mode=0o700)
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _not_writable(path, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            raise HomeError(
                f"{path} is in use by process {pid}: stop that one, or give this peer another --home"
            ) from None
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            home = Home(path, lock)
        except OSError as error:
            raise _not_writable(path, error) from error
        yield home
    finally:
        os.close(lock)  # releases it; so does any death of the process


def _is_address(text: str) -> bool:
    try:
        peer_of(text)
    except LocalError:
        return False
    return True


def _not_writable(path: Path, error: OSError) -> HomeError:
    return HomeError(f"cannot write to the home folder {path}: {told(error)}; or choose another --home")
