"""A server that keeps a worker of Dramatiq's inside one of its own processes, as a web server's are made: ``fork`` or ``spawn``."""

from __future__ import annotations

import multiprocessing
import sys
import threading

import dramatiq

from tests.acceptance.worker import broker


def serve() -> None:
    """The life of the server's process: it serves, and beside that it works."""
    dramatiq.Worker(broker, worker_threads=2).start()
    print("serving", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    process = multiprocessing.Process(target=serve)
    process.start()
    process.join()
    print("the process ended with", process.exitcode, flush=True)
