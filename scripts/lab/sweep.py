"""Runs many specs: in a process pool of one machine, or on a Ray cluster. What is finished stays so.

Engines only carry specs out and results back; the one process that was started writes them down, so workers need no
shared disk and a killed sweep loses what was under way and nothing else. No scheduler of our own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gossip.errors import LocalError
from scripts.lab.spec import AnySpec, Spec
from scripts.lab.threads import ONE_THREAD_ENVIRONMENT

if TYPE_CHECKING:
    from scripts.lab.results import Result, ResultLayout

OnProgress = Callable[[int, int, Spec | None], None]
"""``(finished, of all, the last one)``; called once at the beginning with None, then after each spec."""


class Engine(Protocol):
    """Where specs are run.

    Args:
        specs: to run; may be none.
        workers: at most so many at a time, at least 1.
        run: a function at the top of a module, since processes find it by its name.
    """

    def __call__(
        self, specs: Sequence[AnySpec], workers: int, run: Callable[[AnySpec], Result]
    ) -> Iterator[tuple[AnySpec, Result]]:
        """Yield each spec with its result, in the order in which they are finished."""


def run_sweep(
    specs: Sequence[AnySpec],
    out: Path,
    *,
    run: Callable[[AnySpec], Result],
    layout: ResultLayout,
    engine: str = "pool",
    workers: int = 0,
    request: dict[str, Any] | None = None,
    on_progress: OnProgress = lambda finished, total, spec: None,
) -> int:
    """Run the specs that are not finished yet, then join all results.

    Args:
        specs: without duplicates.
        out: the folder; results of other specs in it are left alone.
        run: what makes a result of a spec; a function at the top of a module.
        layout: how results lie on disk.
        engine: a name of ``ENGINES``.
        workers: processes; 0 = one per core.
        request: what the user asked for, for the manifest.

    Returns:
        How many were finished before.

    Raises:
        LocalError: a spec cannot run (all are checked first), the engine is not there, or the folder is in use.
    """
    from scripts.lab.results import (
        ResultFolder,  # late: workers import this file before their one thread is set
    )

    _check(specs, engine, workers)
    folder = ResultFolder(out, layout)
    with folder.locked():
        missing = [spec for spec in specs if not folder.is_finished(spec)]
        before = len(specs) - len(missing)
        on_progress(before, len(specs), None)
        try:
            finished = before
            for spec, result in ENGINES[engine](missing, workers or os.cpu_count() or 1, run):
                folder.add(spec, result)
                finished += 1
                on_progress(finished, len(specs), spec)
        finally:
            folder.collect(specs, request or {})
    return before


def _check(specs: Sequence[Spec], engine: str, workers: int) -> None:
    """Refuse what cannot run, before anything is written."""
    if engine not in ENGINES:
        raise LocalError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    if workers < 0:
        raise LocalError(f"workers must be at least 1 (0 = one per core), not {workers}")
    for spec in specs:
        spec.check()


def in_process(
    specs: Sequence[AnySpec], workers: int, run: Callable[[AnySpec], Result]
) -> Iterator[tuple[AnySpec, Result]]:
    """One after the other, here."""
    for spec in specs:
        yield spec, run(spec)


def process_pool(
    specs: Sequence[AnySpec], workers: int, run: Callable[[AnySpec], Result]
) -> Iterator[tuple[AnySpec, Result]]:
    """Processes of this machine, one thread each; they end with the one that started them."""
    if not specs:
        return
    # spawn: torch's threads do not survive a fork, and a forked worker would hold the folder's lock
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(specs)), mp_context=context, initializer=_begin_worker)
    try:
        futures = {pool.submit(run, spec): spec for spec in specs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise LocalError(
            "a worker process ended (out of memory?). What is finished is kept: give the same command again to go "
            "on, with fewer --workers if memory was short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def ray_cluster(
    specs: Sequence[AnySpec], workers: int, run: Callable[[AnySpec], Result]
) -> Iterator[tuple[AnySpec, Result]]:
    """A Ray cluster: the one of RAY_ADDRESS or of this machine, else a local one with so many workers."""
    if not specs:
        return
    try:
        import ray
    except ImportError as error:
        raise LocalError(
            "the engine ray needs the package ray: pip install 'gossip-peer[ray]'; or take --engine pool"
        ) from error
    owned = not ray.is_initialized()
    if owned:
        address = os.environ.get("RAY_ADDRESS")
        sizes: dict[str, Any] = (
            {} if address else {"num_cpus": min(workers, len(specs)), "include_dashboard": False}
        )
        environment = {"env_vars": dict(ONE_THREAD_ENVIRONMENT)}
        ray.init(address=address, runtime_env=environment, log_to_driver=False, **sizes)
    try:
        task = ray.remote(num_cpus=1, max_retries=3)(run)
        under_way = {task.remote(spec): spec for spec in specs}
        while under_way:
            (ready,), _ = ray.wait(list(under_way), num_returns=1)
            yield under_way.pop(ready), ray.get(ready)
    finally:
        if owned:
            ray.shutdown()


def _begin_worker() -> None:
    os.environ.update(ONE_THREAD_ENVIRONMENT)  # before numpy is imported, which is with the first spec
    # Ctrl-C reaches us too; the parent says what it means
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


ENGINES: Mapping[str, Engine] = {"pool": process_pool, "here": in_process, "ray": ray_cluster}
"""Engines by name. To add one: a function, and a line here."""
