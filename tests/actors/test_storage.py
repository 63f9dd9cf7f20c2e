"""Storage: keys stay within their folder, links are not followed, files appear whole."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from actors.storage import KeyRefused, Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "storage")


def age(path: Path, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(path, (then, then))


def test_a_stored_file_is_read_back(storage: Storage) -> None:
    storage.put("exports/2026/a.csv", b"x" * 1_000)

    assert storage.get("exports/2026/a.csv", limit=1_000) == b"x" * 1_000
    assert storage.size("exports/2026/a.csv") == 1_000


def test_a_file_above_the_limit_is_refused(storage: Storage) -> None:
    storage.put("a.bin", b"x" * 1_001)

    with pytest.raises(KeyRefused, match="larger than 1,000 bytes"):
        storage.get("a.bin", limit=1_000)


@pytest.mark.parametrize(
    "key",
    [
        *(
            "",
            "/",
            ".",
            "..",
            "../a",
            "a/../b",
            "a/..",
            "/etc/passwd",
            "a//b",
            "a/",
            "./a",
            "a\x00b",
            "a\nb",
            "a\n",
            "a\\b",
            "~/a",
        ),
        *("%2e%2e/a", "a b", "ä", "．．/a", ".hidden", "a/.hidden", "a" * 201, "a/b/c/d/e", "C:a"),
    ],
)
def test_a_key_that_could_mean_another_place_is_refused(storage: Storage, tmp_path: Path, key: str) -> None:
    (tmp_path / "a").write_text("secret")

    with pytest.raises(KeyRefused):
        storage.open(key)
    with pytest.raises(KeyRefused):
        storage.put(key, b"")


def test_symbolic_links_are_not_followed(storage: Storage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    storage.put("images/a.png", b"")
    (storage.root / "link").symlink_to(outside)
    (storage.root / "images" / "secret").symlink_to(outside / "secret")

    for key in ("link/secret", "images/secret"):
        with pytest.raises(KeyRefused):
            storage.open(key)
    with pytest.raises(KeyRefused):
        storage.put("link/new", b"")
    storage.put("images/secret", b"mine")

    assert (outside / "secret").read_text() == "secret"
    assert not (outside / "new").exists()
    assert not (storage.root / "images" / "secret").is_symlink()


def test_what_is_no_plain_file_is_refused(storage: Storage) -> None:
    storage.put("folder/a", b"")
    os.mkfifo(storage.root / "pipe")

    for key in ("folder", "pipe", "folder/a/b", "missing", "missing/a"):
        with pytest.raises(KeyRefused):
            storage.open(key)


def test_a_file_appears_only_when_its_block_ends(storage: Storage) -> None:
    with storage.create("exports/a.csv") as file:
        file.write(b"half")
        file.flush()
        assert not (storage.root / "exports" / "a.csv").exists()
        file.write(b" and half")

    assert storage.get("exports/a.csv", limit=100) == b"half and half"


def test_a_block_that_raises_leaves_the_old_file_and_no_trace(storage: Storage) -> None:
    storage.put("exports/a.csv", b"old")

    def write() -> None:
        with storage.create("exports/a.csv") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()

    assert storage.get("exports/a.csv", limit=100) == b"old"
    assert os.listdir(storage.root / "exports") == ["a.csv"]


def test_an_open_file_does_not_change_under_its_reader(storage: Storage) -> None:
    storage.put("a", b"first")

    with storage.open("a") as file:
        storage.put("a", b"second")
        assert file.read() == b"first"


def test_removing_takes_old_plain_files_only(storage: Storage, tmp_path: Path) -> None:
    for name in ("old", "young"):
        storage.put(f"exports/{name}", b"1234")
    folder = storage.root / "exports"
    (tmp_path / "precious").write_text("x")
    (folder / "link").symlink_to(tmp_path / "precious")
    (folder / "sub").mkdir()
    for name, days in (("half-old", 2.0), ("half-young", 0.5)):
        (folder / f".{name}.tmp").write_text("123")
        age(folder / f".{name}.tmp", days)
    age(folder / "old", 31)
    age(tmp_path / "precious", 31)
    age(folder / "sub", 31)

    assert storage.remove_older("exports", timedelta(days=30)) == (2, 7)
    assert storage.remove_older("exports", timedelta(days=30)) == (0, 0)
    assert sorted(os.listdir(folder)) == [".half-young.tmp", "link", "sub", "young"]
    assert (tmp_path / "precious").exists()


def test_removing_from_a_missing_folder_removes_nothing(storage: Storage) -> None:
    assert storage.remove_older("exports", timedelta(days=1)) == (0, 0)


def test_no_descriptor_is_left_open(storage: Storage) -> None:
    storage.put("a/b/c", b"1")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0

    for _ in range(5):
        storage.put("a/b/c", b"2")
        storage.get("a/b/c", limit=10)
        storage.remove_older("a/b", timedelta(days=1))
        for key in ("a/b", "a/x/y", "a/b/c/d"):
            with pytest.raises(KeyRefused):
                storage.open(key)

    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before
