"""Disks that are full and folders that cannot be written: one line that names the file and says what there is."""

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_endpoint import StubEndpoint, serving
from test_driver import CLOSED, folders, plan_for, stream
from test_run_folder import write_run
from typer.testing import CliRunner

from raylane.benchmarks import load_run
from raylane.benchmarks.driver import run_plan
from raylane.benchmarks.run_folder import check_writable
from raylane.benchmarks.writing import replace_text
from raylane.cli.app import build_app
from raylane.cluster.errors import FailedError, UsageError

pytestmark = pytest.mark.process


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "raylane-test", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_a_disk_that_fills_up_is_one_line_with_what_there_is(small_disk: Path) -> None:
    async with serving(StubEndpoint()) as url:
        plan = plan_for(url, stream("a", CLOSED, output_tokens=200))
        with pytest.raises(FailedError) as caught:
            await run_plan(plan.model_copy(update={"name": "full"}), small_disk)
    (folder,) = folders(small_disk)
    said = str(caught.value)
    assert said.startswith(str(folder))
    assert "No space left on device; what there is of the run is in" in said
    assert "case-000.spool" in said
    assert "\n" not in said
    run = load_run(folder)
    assert not run.complete
    assert run.requests["completed"].sum() > 0


async def test_a_disk_without_room_for_the_plan(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(24_000))
    async with serving(StubEndpoint()) as url:
        with pytest.raises(FailedError, match=r"No space left on device; what there is of the run is in .*"):
            await run_plan(plan_for(url, stream("a", CLOSED)), small_disk)


def test_a_full_disk_is_found_before_the_run(small_disk: Path) -> None:
    check_writable(small_disk)
    with pytest.raises(OSError, match="No space"):
        (small_disk / "other").write_bytes(bytes(40_000))
    with pytest.raises(UsageError, match="No space left on device"):
        check_writable(small_disk / "runs")


LIMITED = """
    import asyncio, resource, sys
    from pathlib import Path
    sys.path.insert(0, {here!r})
    from raylane.benchmarks.driver import run_plan
    from raylane.cluster.errors import FailedError
    from stub_endpoint import StubEndpoint, serving
    from test_driver import CLOSED, plan_for, stream

    async def main():
        async with serving(StubEndpoint()) as url:
            plan = plan_for(url, stream("a", CLOSED, output_tokens=200))
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            await run_plan(plan, Path({out!r}))

    try:
        asyncio.run(main())
    except FailedError as error:
        print(error)
"""


def test_a_limit_on_the_size_of_files_ends_the_run_in_one_line(tmp_path: Path) -> None:
    script = textwrap.dedent(LIMITED).format(here=str(Path(__file__).parent), out=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    (folder,) = folders(tmp_path)
    assert line.startswith(f"{folder}/case-000.spool: cannot be written: File too large; what there is")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_what_was_there_stays_when_its_next_version_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "results.json"
    replace_text(path, "first")

    def refuse(self: Path, text: str, encoding: str) -> int:
        self.touch()
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(FailedError, match=rf"^{path}: cannot be written: {os.strerror(number)}$"):
        replace_text(path, "second")
    assert path.read_text() == "first"
    assert folders(tmp_path) == [path]


def full(folder: Path) -> None:
    (folder / "report.html").unlink(missing_ok=True)
    (folder / "report.html").mkdir()
    (folder / "report.html" / "inside").touch()


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["tables", "JSON"])
def test_a_run_that_cannot_be_written_is_shown_all_the_same(tmp_path: Path, arguments: list[str]) -> None:
    folder = write_run(tmp_path)
    full(folder)
    done = CliRunner().invoke(build_app(["report"]), ["report", str(folder), *arguments])
    assert "m<b>" in done.stdout
    assert isinstance(done.exception, FailedError)
    assert str(done.exception).startswith(f"{folder}/report.html: cannot be written: ")
    assert "\n" not in str(done.exception)


def test_one_run_that_cannot_be_written_does_not_keep_another_from_it(tmp_path: Path) -> None:
    first, second = write_run(tmp_path), write_run(tmp_path)
    full(first)
    done = CliRunner().invoke(build_app(["report"]), ["report", str(first), str(second)])
    assert isinstance(done.exception, FailedError)
    assert (second / "report.md").is_file()
