"""Files by key: where actors read what they are given and leave what they make.

A key is a relative path such as ``exports/7f3c.csv`` below ``DATA_DIR/storage``. It names a file and nothing else: letters,
digits, ``.``, ``_`` and ``-``, at most four parts, none beginning with a dot, so no key can leave the folder. Every part is
opened relative to its parent with O_NOFOLLOW, so a symbolic link planted on the way is refused and not followed.

A file appears whole or not at all: it is written beside its place under a hidden name, flushed to the disk, then renamed. A
worker that dies while writing leaves a hidden ``.tmp`` file, which the nightly clean-up takes; a second attempt of the same
job replaces the first one's file.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Final

import switchyard
from switchyard import Permanent

#: How long a half-written file may lie about before the clean-up takes it; longer than any actor's time limit.
ABANDONED_AFTER: Final = timedelta(days=1)

#: The longest key, in characters; leaves room for the hidden name within the file systems' 255 bytes a part.
MAX_KEY_LENGTH: Final = 200

_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_KEY: Final = re.compile(rf"{_PART}(?:/{_PART}){{0,3}}")
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO that somebody put there must fail below, not wait for its writer.
_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class KeyRefused(Permanent):
    """The key is not one, or names no plain file; trying again cannot help."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"storage key {key[:MAX_KEY_LENGTH]!r}: {reason}")
        self.key = key
        self.reason = reason


class Storage:
    """The files below one folder, addressed by key."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def create(self, key: str) -> Iterator[BinaryIO]:
        """Write a file: it takes the key's place, whole, when the block ends, and leaves no trace when the block raises.

        Raises:
            KeyRefused: the key is malformed, or a part of it is a symbolic link or a file.
            OSError: the disk refused.
        """
        *folders, name = _parts(key)
        with self._folder(key, folders, make=True) as folder:
            hidden = f".{name}.{secrets.token_hex(4)}.tmp"
            try:
                with os.fdopen(os.open(hidden, _WRITE_FLAGS, 0o640, dir_fd=folder), "w+b") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(hidden, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(hidden, dir_fd=folder)
                raise
            # The rename itself has to reach the disk: the job may be completed a millisecond from now.
            os.fsync(folder)

    def put(self, key: str, data: bytes) -> None:
        """Store ``data`` under the key, atomically. Raises as ``create`` does."""
        with self.create(key) as file:
            file.write(data)

    def open(self, key: str) -> BufferedReader:
        """Open a stored file for reading; a later replacement does not change what this handle reads.

        Raises:
            KeyRefused: the key is malformed, or there is no plain file under it.
        """
        *folders, name = _parts(key)
        with self._folder(key, folders, make=False) as folder:
            try:
                descriptor = os.open(name, _READ_FLAGS, dir_fd=folder)
            except OSError as error:
                raise KeyRefused(key, "no such file" if isinstance(error, FileNotFoundError) else "is no plain file") from error
        file = os.fdopen(descriptor, "rb") if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        if file is None:
            os.close(descriptor)
            raise KeyRefused(key, "is no plain file")
        return file

    def get(self, key: str, *, limit: int) -> bytes:
        """Read a stored file of at most ``limit`` bytes.

        Raises:
            KeyRefused: there is no such file, or it is larger.
        """
        with self.open(key) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise KeyRefused(key, f"is larger than {limit:,} bytes")
        return data

    def size(self, key: str) -> int:
        """The size of a stored file in bytes. Raises as ``open`` does."""
        with self.open(key) as file:
            return os.fstat(file.fileno()).st_size

    def remove_older(self, folder: str, age: timedelta) -> tuple[int, int]:
        """Remove the plain files directly in a folder that were written longer ago than ``age``; running it again is harmless.

        Parameters:
            folder: a key's first parts, or ``""`` for the storage's own folder. A missing folder is an empty one.

        Returns:
            How many files were removed, and their bytes.
        """
        now, files, size = time.time(), 0, 0
        try:
            with self._folder(folder, _parts(folder) if folder else [], make=False) as descriptor:
                for name in os.listdir(descriptor):
                    with suppress(FileNotFoundError):  # somebody else's clean-up was faster
                        found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                        kept = ABANDONED_AFTER if name.startswith(".") else age
                        if stat.S_ISREG(found.st_mode) and found.st_mtime < now - kept.total_seconds():
                            os.unlink(name, dir_fd=descriptor)
                            files, size = files + 1, size + found.st_size
        except KeyRefused as refused:
            if not isinstance(refused.__cause__, FileNotFoundError):
                raise
        return files, size

    @contextmanager
    def _folder(self, key: str, parts: list[str], *, make: bool) -> Iterator[int]:
        """Walk down to a folder, one descriptor at a time, following no link below the root."""
        if make:
            self.root.mkdir(parents=True, exist_ok=True)
        descriptors: list[int] = []
        try:
            descriptors.append(os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            for part in parts:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(part, 0o750, dir_fd=descriptors[-1])
                descriptors.append(os.open(part, _FOLDER_FLAGS, dir_fd=descriptors[-1]))
        except (FileNotFoundError, NotADirectoryError) as error:
            _close_all(descriptors)
            missing = isinstance(error, FileNotFoundError)
            raise KeyRefused(key, "no such file" if missing else "leads through no folder") from error
        except BaseException:
            _close_all(descriptors)
            raise
        try:
            yield descriptors[-1]
        finally:
            _close_all(descriptors)


def storage() -> Storage:
    """The storage of this deployment: ``DATA_DIR/storage``."""
    return Storage(switchyard.settings().data_dir / "storage")


def outbox() -> Storage:
    """Where e-mails go while no SMTP server is set: ``DATA_DIR/outbox``."""
    return Storage(switchyard.settings().data_dir / "outbox")


def _parts(key: str) -> list[str]:
    if len(key) > MAX_KEY_LENGTH or not _KEY.fullmatch(key):
        raise KeyRefused(key, "must be one to four parts of letters, digits, '.', '_' and '-', such as imports/may.csv")
    return key.split("/")


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
