"""``peer doctor``: is this machine ready for a run? Each check looks at one thing, and says what to do about it.

It changes nothing, connects to nobody, and trains nothing. The catalogue of checks stands at the foot.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from gossip.errors import LocalError
from gossip.manifest import PROTOCOL_VERSION
from peer.config import PeerConfig
from peer.network.addresses import listen_endpoint, reachable_addresses
from peer.network.catalogue import check_listen

HOME_BYTES = 200 << 20
"""Free disk below which a home is warned of. Source: our bench: adapter, optimizer and two checkpoints of the default
model are 45 MB, and a journal."""
FILES_PER_CONNECTION = 4
"""Open files that a connection may need, with what a process has anyhow. Source: ours."""
MEMORY_BYTES = 1 << 30
"""Free memory below which the default model is warned of. Source: our bench: half of it is private to a peer, and the
other half is the model, shared among peers of a machine."""
LIBRARIES = ("torch", "transformers", "peft", "libp2p", "trio")

Verdict = Literal["ok", "look", "wrong"]
"""In order; worth a look; a run would be refused."""


class Finding(NamedTuple):
    """What one check has found: its verdict, and a sentence."""

    verdict: Verdict
    told: str


def _versions(config: PeerConfig, home: Path) -> Finding:
    told, missing = [f"Python {sys.version.split()[0]}", f"protocol {PROTOCOL_VERSION}"], []
    for name in ("gossip-peer", *LIBRARIES):
        try:
            told.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("wrong", f"not installed: {', '.join(missing)}; install gossip-peer again")
    return Finding("ok", ", ".join(told))


def _clock(config: PeerConfig, home: Path) -> Finding:
    """Lives are told apart by the time at which they began, so that a clock that stands in the past hides a restart."""
    installed, now = Path(__file__).stat().st_mtime, time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))
    if now < installed:
        return Finding(
            "wrong", f"the clock says {shown} UTC, before this program was installed: set it, by NTP"
        )
    return Finding("ok", f"{shown} UTC")


def _home(config: PeerConfig, home: Path) -> Finding:
    existing = next(folder for folder in (home, *home.absolute().parents) if folder.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            "wrong", f"{existing} cannot be written: change its permissions, or choose another --home"
        )
    free = shutil.disk_usage(existing).free
    told = f"{home}, {free / 1e9:.1f} GB free"
    if home.exists() and home.stat().st_mode & 0o077:
        return Finding("look", f"{told}; other users can look into it: chmod 700 {home}")
    if free < HOME_BYTES:
        return Finding("look", f"{told}: make room, or choose another --home")
    return Finding("ok", told)


def _port(config: PeerConfig, home: Path) -> Finding:
    listen = config.network.listen
    check_listen(listen)
    if listen.startswith("/memory"):
        return Finding("ok", listen)
    _, _, port = listen_endpoint(listen)
    told = ", ".join(address.partition("/p2p/")[0] for address in reachable_addresses(listen, port, ""))
    if port == 0:
        return Finding(
            "look",
            f"any free port, another at each start: friends elsewhere want one, --listen /ip4/0.0.0.0/tcp/4001; {told}",
        )
    return Finding(
        "ok", f"free; friends in your network reach you at {told}; others need that port forwarded, or a VPN"
    )


def _files(config: PeerConfig, home: Path) -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_PER_CONNECTION * config.network.connections_max
    if soft < needed:
        return Finding(
            "look",
            f"{soft} open files allowed, {needed} may be needed: ulimit -n {needed}, or lower --connections-max",
        )
    return Finding("ok", f"{soft} open files allowed")


def _memory(config: PeerConfig, home: Path) -> Finding:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except FileNotFoundError:
        return Finding("ok", "not known on this system")
    free = 1024 * int(lines["MemAvailable"].split()[0])
    told = f"{free / 1e9:.1f} GB available"
    return Finding("look" if free < MEMORY_BYTES else "ok", told)


def _model(config: PeerConfig, home: Path) -> Finding:
    from peer.training.base_models import ALIASES, cache_folder

    model = config.model.model
    if model in ALIASES:
        folder = cache_folder() / "models" / ALIASES[model].version
        ready = "here" if folder.is_dir() else "made at the first start, from a package of the package index"
        return Finding("ok", f"{model}: {ready}")
    if Path(model).expanduser().is_dir():
        return Finding("ok", f"the folder {model}")
    return Finding(
        "look", f"{model} is no folder here and no model of ours: it is looked for on the Hugging Face hub"
    )


def _data(config: PeerConfig, home: Path) -> Finding:
    from peer.training import data

    if not config.data.data:
        return Finding("look", "none given: --data FILE has your text looked at, too")
    loaded = data.load(config.data.data, bad_rows=config.data.bad_rows, labels=config.model.labels)
    told = f"usable rows: {len(loaded.rows)}; others: {len(loaded.bad)}"
    return Finding("look" if loaded.bad else "ok", told)


def _device(config: PeerConfig, home: Path) -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding(
            "ok", f"{torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[0] / 1e9:.0f} GB free"
        )
    if torch.backends.mps.is_available():
        return Finding("ok", "mps")
    wanted = config.model.device
    if wanted not in ("auto", "cpu"):
        return Finding("wrong", f"--device {wanted}: torch finds none; leave the option out for the CPU")
    return Finding("ok", f"CPU, {os.cpu_count()} cores")


CHECKS: dict[str, Callable[[PeerConfig, Path], Finding]] = {
    "versions": _versions,
    "clock": _clock,
    "home": _home,
    "port": _port,
    "open files": _files,
    "memory": _memory,
    "model": _model,
    "data": _data,
    "device": _device,
}
"""What is looked at, in this order. To add one: a function, and a line here."""


def examine(config: PeerConfig, home: Path) -> dict[str, Finding]:
    """Return what every check finds; a refusal of one is its finding, and the others go on."""
    found = {}
    for name, check in CHECKS.items():
        try:
            found[name] = check(config, home)
        except LocalError as error:
            found[name] = Finding("wrong", str(error))
    return found
