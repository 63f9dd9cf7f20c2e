"""The witness outside the system: one file of JSON lines that every process of a scenario appends to.

    invoke ok info fail     a producer sends a job; info: it does not know whether the job was stored
    start effect end        an actor runs, with attempt and token of its claim
    fault healed            what the scenario did
    failpoint               a process has reached a point where it dies

A line is one ``write`` to a file opened with O_APPEND, so lines never mix, and a process that is killed leaves its lines in the page
cache, where a kill -9 cannot take them back (the machine itself is not what dies here, so nothing is synced). Times are CLOCK_MONOTONIC,
which all processes of a machine share.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One line."""

    kind: str
    at: float
    pid: int
    fields: dict[str, Any]

    @property
    def job(self) -> str:
        """The message id of the job that the line is about."""
        return str(self.fields["job"])


class Recorder:
    """Appends lines; any number of processes and threads at once."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, kind: str, **fields: Any) -> None:
        """Append one line."""
        line = json.dumps({"kind": kind, "at": monotonic(), "pid": os.getpid(), **fields}, separators=(",", ":"))
        os.write(self._descriptor, line.encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class Reader:
    """Follows the file: each look reads what is new, so that looking often costs little."""

    def __init__(self, path: Path | str) -> None:
        self.events: list[Event] = []
        self.counts: Counter[str] = Counter()
        self._path = Path(path)
        self._offset = 0
        self._rest = b""

    def look(self) -> list[Event]:
        """Every line so far, in the order written."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            fields = json.loads(line)
            event = Event(fields.pop("kind"), fields.pop("at"), fields.pop("pid"), fields)
            self.events.append(event)
            self.counts[event.kind] += 1
        return self.events
