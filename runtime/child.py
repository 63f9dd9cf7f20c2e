"""One worker process of ``switchyard worker``: a Dramatiq ``Worker`` with its supervisor at the other end of a socket.

    python -m runtime.child OPTIONS        OPTIONS: the fields of ``Options`` as JSON

It tells its supervisor ``ready GRACE`` when it works (GRACE: its SHUTDOWN_GRACE in seconds), and ``recycling REASON`` when it wants to be
replaced; it works on until told ``go``, when its successor is ready. SIGTERM stops it in order, a second one hurries. Its supervisor's
death closes the socket, and it stops as by SIGTERM: no worker outlives its supervisor by more than the grace.

It does what ``dramatiq MODULE -p 1`` does in its worker process, without that command's two further processes and without fork: each
process is a fresh interpreter, so that a replacement runs the code as it is now.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Collection
from contextlib import closing
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any, Final

from dramatiq import Broker, Worker, get_broker

from errors import SettingsError
from runtime import process
from runtime.node import WorkerNode

#: How often the limits are looked at, in seconds.
CHECK_INTERVAL: Final = 0.5
#: How long the successor may take to be ready, in seconds; then this process stops all the same.
SUCCESSION: Final = 30.0
#: How long Dramatiq waits for threads: the node's own clock ends the process long before.
_FOR_EVER_MS: Final = 10**9


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a supervisor wants of a process.

    Parameters:
        channel: the file descriptor of the socket to the supervisor.
        modules: what to import; the first may name its broker, as in Dramatiq (``module:broker``).
        queues: consume only these; empty: all.
        max_jobs: recycle after this many executions; None: never.
        max_memory: recycle above this many bytes of resident memory; None: never.
    """

    channel: int
    modules: list[str]
    threads: int = 8
    queues: list[str] = field(default_factory=list)
    max_jobs: int | None = None
    max_memory: int | None = None

    def argv(self) -> list[str]:
        """The command line of such a process."""
        warnings = [word for option in sys.warnoptions for word in ("-W", option)]
        return [sys.executable, *warnings, "-m", "runtime.child", json.dumps(asdict(self))]


class Child:
    """The life of the process."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._channel = socket.socket(fileno=options.channel)
        # Neither programs nor forks that a job starts hold on to it: its end tells each side of the other's death.
        self._channel.set_inheritable(False)
        self._broker: Broker | None = None
        self._stop = threading.Event()
        self._go = threading.Event()
        self._told_before = False

    def run(self) -> None:
        """Work until told to stop. Raises: SystemExit: with the codes of ``runtime.process``."""
        signal.signal(signal.SIGTERM, self._told)
        # Ctrl-C reaches the whole group; the supervisor passes on what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
        process.supervised_by(self._stop.set)
        threading.Thread(target=self._listen, name="switchyard-channel", daemon=True).start()
        broker = self._broker = self._load()
        node = self._start(broker)
        self._say(f"ready {node.settings.shutdown_grace}")
        with closing(broker):
            while not self._stop.wait(CHECK_INTERVAL):
                self._check_limits(node)
            if node.recycling is not None:
                self._say(f"recycling {node.recycling}")
                self._go.wait(SUCCESSION)
            self._worker.stop(timeout=_FOR_EVER_MS)

    def _load(self) -> Broker:
        modules = self._options.modules
        sys.path.insert(0, ".")
        try:
            first, _, name = modules[0].partition(":")
            found = importlib.import_module(first)
            broker = getattr(found, name) if name else get_broker()
            if callable(broker):
                broker()
                broker = get_broker()
            broker.emit_after("process_boot")
            for module in modules[1:]:
                importlib.import_module(module)
        except SettingsError as error:
            process.refuse(str(error))
        except ModuleNotFoundError as error:
            if error.name is None or not any(_within(error.name, module.partition(":")[0]) for module in modules):
                raise
            process.refuse(f"{error}, neither in {os.getcwd()} nor where else Python looks")
        if not isinstance(broker, Broker):
            process.refuse(f"{modules[0]} names no Dramatiq broker")
        return broker

    def _start(self, broker: Broker) -> WorkerNode:
        queues = set(self._options.queues)
        if hasattr(broker, "node"):
            self._look_at_queues(queues, broker.queues)
        self._worker = Worker(broker, queues=queues or None, worker_threads=self._options.threads)
        self._worker.start()
        node = getattr(broker, "node", None)
        if not isinstance(node, WorkerNode):
            self._worker.stop()
            process.refuse(f"{type(broker).__name__} is not Switchyard's broker; call switchyard.configure() before the actors")
        return node

    def _look_at_queues(self, wanted: set[str], declared: Collection[str]) -> None:
        """Say which queues of ``--queues`` no actor is on; where that is all of them there is nothing to do, and no start."""
        unknown = sorted(wanted - set(declared))
        if not unknown:
            return
        meant = [name for queue in unknown for name in get_close_matches(queue, declared, n=1)]
        hint = f"; did you mean {' or '.join(dict.fromkeys(meant))}?" if meant else ""
        line = f"no actor is declared on the queue {', '.join(unknown)}{hint}"
        if len(unknown) == len(wanted):
            process.refuse(f"--queues: {line}; name one of {', '.join(sorted(declared)) or 'none: no actor is declared at all'}")
        sys.stderr.write(f"switchyard: {line}\n")

    def _check_limits(self, node: WorkerNode) -> None:
        most_jobs, most_memory = self._options.max_jobs, self._options.max_memory
        if most_jobs is not None and node.held.finished >= most_jobs:
            node.recycle(f"it has run {node.held.finished:,} jobs, --max-jobs")
        elif most_memory is not None and (used := resident_bytes()) > most_memory:
            node.recycle(f"it uses {used // 2**20:,} MiB of memory, --max-memory")

    def _told(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        hurry = self._told_before
        self._told_before = True
        self._stop.set()
        self._go.set()
        node: Any = getattr(self._broker, "node", None)
        if node is not None:
            node.told_to_stop(hurry=hurry)

    def _say(self, line: str) -> None:
        try:
            self._channel.sendall(f"{line}\n".encode())
        except OSError:
            # The supervisor is dead; the listener knows, too.
            self._stop.set()

    def _listen(self) -> None:
        """Wait for the supervisor's word, or its death."""
        while True:
            try:
                word = self._channel.recv(64)
            except OSError:
                word = b""
            if not word:
                break
            self._go.set()
        if not self._stop.is_set():
            sys.stderr.write(f"switchyard: the supervisor of process {os.getpid()} is gone, stopping\n")
        # By its own hand, so that it is the main thread that stops, as it does for anybody else's signal.
        os.kill(os.getpid(), signal.SIGTERM)


def resident_bytes() -> int:
    """The memory of this process that is in RAM; where the system does not say, the most that ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import resource

        # Bytes on macOS, kilobytes on the BSDs.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return pages * os.sysconf("SC_PAGE_SIZE")


def _within(name: str, module: str) -> bool:
    return module == name or module.startswith(name + ".")


def main() -> None:
    """Run the process that the command line asks for."""
    try:
        Child(Options(**json.loads(sys.argv[1]))).run()
    finally:
        process.spare_last_collections()


if __name__ == "__main__":
    main()
