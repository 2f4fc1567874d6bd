"""Runs many specs (cells, trials): in a process pool of one machine, or on a Ray cluster. What is finished stays so.

Engines only carry specs out and results back; the one process that was started writes them down, so workers need no
shared disk and a killed sweep loses what was under way and nothing else. No scheduler of our own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gossip.errors import LocalError

if TYPE_CHECKING:
    from scripts.lab.convergence.cell import Cell
    from scripts.lab.convergence.run import CellResult
    from scripts.lab.results import Result, ResultLayout


class Spec(Protocol):
    """A frozen spec: a cell, or a trial of a comparison."""

    @property
    def seed(self) -> int:
        """Root of everything random."""

    def name(self) -> str:
        """Return what its result is kept under: a hash of all that it depends on."""

    def fields(self) -> dict[str, Any]:
        """Return name -> value."""

    def check(self) -> None:
        """Refuse what cannot run, with a ``LocalError``."""


Run = Callable[[Any], Any]
"""Spec -> result; a function at the top of a module, since processes find it by its name."""
Finished = tuple[Any, "Result"]
OnCell = Callable[[int, int, Any], None]
"""``(finished, of all, the last one)``; called once at the beginning with None, then after each spec."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def work(cell: Cell) -> CellResult:
    """Run one cell, importing only then what that takes."""
    from scripts.lab.convergence.run import run_cell

    return run_cell(cell)


def run_sweep(
    cells: Sequence[Spec],
    out: Path,
    *,
    engine: str = "pool",
    workers: int = 0,
    spec: dict[str, Any] | None = None,
    on_cell: OnCell = lambda done, total, cell: None,
    run: Run = work,
    layout: ResultLayout | None = None,
) -> int:
    """Run the cells that are not finished yet, then join all results.

    Args:
        cells: without duplicates.
        out: the folder; results of other cells in it are left alone.
        engine: a name of ``ENGINES``.
        workers: processes; 0 = one per core.
        spec: what the user asked for, for the manifest.
        run: what makes a result of a spec.
        layout: how results lie on disk; default: those of cells.

    Returns:
        How many were finished before.

    Raises:
        LocalError: a cell cannot run (all are checked first), the engine is not there, or the folder is in use.
    """
    from scripts.lab.results import CELL_LAYOUT, ResultFolder

    if engine not in ENGINES:
        raise LocalError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    if workers < 0:
        raise LocalError(f"workers must be at least 1 (0 = one per core), not {workers}")
    for cell in cells:
        cell.check()
    folder = ResultFolder(out, layout or CELL_LAYOUT)
    with folder.locked():
        missing = [cell for cell in cells if not folder.is_finished(cell.name())]
        done = before = len(cells) - len(missing)
        on_cell(done, len(cells), None)
        try:
            if missing:
                for cell, result in ENGINES[engine](
                    missing, min(workers or os.cpu_count() or 1, len(missing)), run
                ):
                    folder.add(cell, result)
                    done += 1
                    on_cell(done, len(cells), cell)
        finally:
            folder.collect(cells, spec or {})
    return before


def in_process(cells: Sequence[Spec], workers: int, run: Run) -> Iterator[Finished]:
    """One after the other, here."""
    for cell in cells:
        yield cell, run(cell)


def process_pool(cells: Sequence[Spec], workers: int, run: Run) -> Iterator[Finished]:
    """Processes of this machine, one thread each; they end with the one that started them."""
    # spawn: torch's threads do not survive a fork, and a forked worker would hold the folder's lock
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    try:
        futures = {pool.submit(run, cell): cell for cell in cells}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise LocalError(
            "a worker process ended (out of memory?). What is finished is kept: give the same command again to go "
            "on, with fewer --workers if memory was short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def ray_cluster(cells: Sequence[Spec], workers: int, run: Run) -> Iterator[Finished]:
    """A Ray cluster: the one of RAY_ADDRESS or of this machine, else a local one with so many workers."""
    try:
        import ray
    except ImportError as error:
        raise LocalError(
            "the engine ray needs the package ray: pip install 'gossip-peer[ray]'; or take --engine pool"
        ) from error
    owned = not ray.is_initialized()
    if owned:
        address = os.environ.get("RAY_ADDRESS")
        sizes: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
        environment = {"env_vars": dict.fromkeys(THREADS, "1")}
        ray.init(address=address, runtime_env=environment, log_to_driver=False, **sizes)
    try:
        task = ray.remote(num_cpus=1, max_retries=3)(run)
        under_way = {task.remote(cell): cell for cell in cells}
        while under_way:
            (ready,), _ = ray.wait(list(under_way), num_returns=1)
            yield under_way.pop(ready), ray.get(ready)
    finally:
        if owned:
            ray.shutdown()


def _begin_worker() -> None:
    for name in THREADS:  # before numpy is imported, which is in the first cell
        os.environ[name] = "1"
    # Ctrl-C reaches us too; the parent says what it means
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


ENGINES: dict[str, Callable[[Sequence[Spec], int, Run], Iterator[Finished]]] = {
    "pool": process_pool,
    "here": in_process,
    "ray": ray_cluster,
}
