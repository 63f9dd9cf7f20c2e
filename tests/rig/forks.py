"""Code that runs in a forked child of the test."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable


def in_child(action: Callable[[], object], timeout: float = 30.0) -> str:
    """Fork, and return what ``action`` came to over there, as text; a child that does not get through is killed and fails the test."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # It shares everything with pytest and must not come back.
        try:
            answer = str(action())
        except BaseException as error:
            answer = repr(error)
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        ready, _, _ = select.select([pipe], [], [], timeout)
        if not ready:
            os.kill(child, signal.SIGKILL)
        answer = pipe.read()
    os.waitpid(child, 0)
    assert ready, f"the child did not get through in {timeout:g} s"
    return answer
