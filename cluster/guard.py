"""Ends a local Ray whose process died without doing so, by kill -9 say. Its arguments are the variable that marks Ray's
processes and Ray's folder; its standard input is a pipe that closes when that process is gone."""

import shutil
import signal
import sys
from pathlib import Path

from raylane.cluster.processes import end_processes_with

ENDS_WITHIN_S = 5.0


def main() -> None:
    mark, folder = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_processes_with(mark, folder, ENDS_WITHIN_S)
    shutil.rmtree(Path(folder), ignore_errors=True)


if __name__ == "__main__":
    main()
