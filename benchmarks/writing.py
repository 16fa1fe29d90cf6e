"""Files that are replaced whole: a reader never meets half of one, and a full disk leaves the one before."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raylane.cluster.errors import FailedError


class WriteFailedError(FailedError):
    """A file of a run could not be written."""


def replace_text(path: Path, text: str) -> None:
    """Write a text file. Raises WriteFailedError naming it when it cannot be written."""
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a file beside `path` and put it in its place. Raises WriteFailedError naming it."""
    partial = path.with_name(f".{path.name}.partial")
    with failures_named(path):
        try:
            write(partial)
            partial.replace(path)
        except OSError:
            with suppress(OSError):
                partial.unlink()  # leaves its room to what can still be written
            raise


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """A WriteFailedError with the file in place of the system's error."""
    try:
        yield
    except OSError as error:
        raise WriteFailedError(f"{path}: cannot be written: {error.strerror or error}") from error
