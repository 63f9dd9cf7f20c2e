"""The README tells the truth: its job runs as written, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from settings import Settings, variables
from tests.rig.processes import ROOT, base_environment
from tests.rig.workers import Workers

README = (ROOT / "README.md").read_text()
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()


@pytest.mark.usefixtures("redis_url")
def test_the_job_of_the_readme_runs_as_written(worker_process: Workers, settings: Settings, tmp_path: Path):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    sender = re.search(r"BROKER=redis python -c '(.*)'$", README, re.MULTILINE)
    assert code
    assert sender
    (tmp_path / "greetings.py").write_text(f"import switchyard\nswitchyard.configure()\n{code[1]}")

    worker_process("greetings", path=tmp_path, env={"BROKER": "redis"})
    sent = subprocess.run(
        [sys.executable, "-c", sender[1].replace("from actors import", "from greetings import")],
        env=base_environment() | variables(settings) | {"BROKER": "redis", "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (sent.stdout, sent.stderr) == ("Hello, Ada\n", "")


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"\bmake ([a-z]+)\b(?=`|$)", README, re.MULTILINE)) <= targets
    assert {"setup", "demo", "test", "help"} <= targets


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *[str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")]]
)
def test_every_link_leads_somewhere(page: str):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / page).read_text())

    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_the_readme_fits_one_screen():
    assert len(README.splitlines()) <= 80


def test_the_readme_and_the_tutorial_write_the_same_job():
    written = [re.search(r"```python\n(.*?)```", text, re.DOTALL) for text in (README, TUTORIAL)]

    assert written[0]
    assert written[1]
    assert written[0][1] == written[1][1]


def test_the_programs_of_the_tutorial_can_be_pasted_as_they_stand():
    programs = re.findall(r"^python -c '(.*?)'$", TUTORIAL, re.DOTALL | re.MULTILINE)

    assert len(programs) == TUTORIAL.count("python -c ") == 5
    for program in programs:
        compile(program, "docs/tutorial.md", "exec")


@pytest.mark.parametrize(
    "page", ["docs/tutorial.md", "docs/howto/add-a-job.md", "docs/reference/actors.md", "docs/performance.md"]
)
def test_the_readme_leads_to(page: str):
    assert f"]({page})" in README


def test_every_decision_is_listed_and_has_its_five_parts():
    pages = sorted((ROOT / "docs" / "adr").glob("0*.md"))
    index = (ROOT / "docs" / "adr" / "README.md").read_text()

    assert [page.name for page in pages if page.name not in index] == []
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text()
        assert [
            part for part in ("Status: ", "## Context", "## Decision", "## Consequences", "## Rejected") if part not in text
        ] == []
