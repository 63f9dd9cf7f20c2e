"""Real worker processes, of ``dramatiq`` and of ``switchyard worker``: an environment of their own, signalled, logs when a test fails."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

import psutil

from settings import Settings, variables
from tests.rig.processes import ROOT, Child, base_environment


class Worker(Child):
    """One ``dramatiq`` or ``switchyard worker`` command with its worker processes.

    ``terminate`` is SIGTERM to the command, as a supervisor sends it; ``kill``, ``freeze`` and ``thaw`` hit the whole tree. For a
    signal to the worker process alone, send it to ``children()``.
    """

    def workers(self) -> list[psutil.Process]:
        """Of ``switchyard worker``: its living worker processes, oldest first. A program that a job runs is none."""
        found = [child for child in self.children() if "runtime.child" in " ".join(_command(child))]
        return sorted(found, key=lambda child: child.pid)

    def stop(self, timeout: float = 40.0) -> int:
        """SIGTERM, and the exit code. Raises: subprocess.TimeoutExpired."""
        self.terminate()
        return self.wait(timeout)


class Workers:
    """Starts workers for one test, and ends them after it.

    Parameters:
        settings: what the workers are to use; handed over as environment variables.
        directory: their working directory and where their logs go.
    """

    def __init__(self, settings: Settings, directory: Path) -> None:
        self._environment = base_environment() | variables(settings) | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self._directory = directory
        self.started: list[Worker] = []

    def __call__(
        self,
        module: str = "actors",
        *more_modules: str,
        threads: int = 4,
        processes: int = 1,
        queues: tuple[str, ...] = (),
        path: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        supervised: bool = False,
        options: tuple[str, ...] = (),
    ) -> Worker:
        """Start ``dramatiq MODULE... -p PROCESSES -t THREADS``, or ``switchyard worker`` with the same.

        Parameters:
            supervised: start ``switchyard worker``.
            options: more words for the command line.
            module: the module with the actors; default the checkout's ``actors``.
            queues: consume only these; default all.
            path: a further folder to import modules from, such as ``tmp_path`` with actors written by the test.
            env: variables that add to, or replace, those made of the settings.
        """
        environment = self._environment | dict(env or {})
        if path is not None:
            environment["PYTHONPATH"] = f"{path}:{environment['PYTHONPATH']}"
        program = ["-W", "error", "-m", "cli", "worker"] if supervised else ["-m", "dramatiq"]
        command = [sys.executable, *program, module, *more_modules, "-p", str(processes), "-t", str(threads), *options]
        if queues:
            command += ["-Q", *queues]
        log = self._directory / f"worker-{len(self.started) + 1}-{uuid.uuid4().hex[:6]}.log"
        worker = Worker(command, log=log, env=environment, cwd=self._directory)
        self.started.append(worker)
        return worker

    def logs(self) -> str:
        """Every worker's output, for the report of a failed test."""
        return "\n".join(f"--- worker {worker.pid} (exit code {worker.returncode})\n{worker.output()}" for worker in self.started)

    def close(self) -> None:
        """Kill what still runs."""
        for worker in self.started:
            if worker.running:
                worker.kill()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
