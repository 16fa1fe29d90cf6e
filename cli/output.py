"""Standard output and error as a command finds them: closed ones are opened, and no terminal is asked too much."""

import codecs
import os
import sys

PLAIN = {
    "…": "...",
    "→": "->",
    "←": "<-",
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "·": ".",
    "•": "*",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "±": "+-",
    "µ": "u",
    "μ": "u",
    "°": " deg",
    "€": "EUR",
    "✓": "ok",
    "─": "-",
    "━": "-",
    "│": "|",
    "\u00a0": " ",
    "\u202f": " ",
}
"""What is written in place of signs that a terminal has not; an escape in place of all others."""


def plain(error: UnicodeError) -> tuple[str, int]:
    """Error handler of a codec: the nearest text in ASCII, or an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in missing), error.end


def prepare_output() -> None:
    """Make the three standard streams usable: those that were closed lead nowhere, and no text is too much for one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115 - a descriptor, open as long as the process lives
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115
    codecs.register_error("raylane-plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="raylane-plain")
