"""The guard of a local Ray: it ends what is marked, and removes the folder, once its pipe is closed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from raylane.cluster.processes import processes_with

MARK = "RAYLANE_TEST_GUARDED"


def test_what_a_dead_process_left_is_ended_when_its_pipe_closes(tmp_path: Path) -> None:
    folder = tmp_path / "rl-1"
    folder.mkdir()
    (folder / "file").touch()
    left = subprocess.Popen(["sleep", "120"], env={**os.environ, MARK: str(folder)})
    try:
        command = [sys.executable, "-m", "raylane.cluster.guard", MARK, str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as guard:
            assert processes_with(MARK, str(folder)) == [left.pid]
            assert guard.poll() is None
        assert left.wait(1) == -signal.SIGKILL
        assert not folder.exists()
    finally:
        left.kill()
        left.wait()
