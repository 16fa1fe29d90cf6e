"""Figures and tables as Markdown, and their places in a hand-written page."""

import re
from collections.abc import Mapping

from raylane.autoscaling.lab.statistics import Interval
from raylane.cluster.errors import UsageError

NONE = "–"


def percent(share: float | None, digits: int = 1) -> str:
    return NONE if share is None else f"{100 * share:.{digits}f} %"


def signed_percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:+.1f} %"


def hours(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def interval(found: Interval, unit: str = "%") -> str:
    """Value and its 95 % interval, both times 100."""
    value = f"{100 * found.value:+.1f} {unit}"
    if found.low is None or found.high is None:
        return f"{value} (one seed)"
    return f"{value} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def filled(page: str, parts: Mapping[str, str]) -> str:
    """The page with each part between its markers `<!-- study:NAME -->` and `<!-- /study:NAME -->`.

    UsageError for a marker that nothing is known of or that is not closed. Parts without markers are left out.
    """
    opened = re.findall(r"<!-- study:([\w-]+) -->", page)
    for name in opened:
        if name not in parts:
            raise UsageError(f"<!-- study:{name} -->: no such part; there are {', '.join(parts)}")
        if f"<!-- /study:{name} -->" not in page:
            raise UsageError(f"<!-- study:{name} --> is not closed by <!-- /study:{name} -->")
        between = rf"(<!-- study:{name} -->).*?(<!-- /study:{name} -->)"
        text = f"\n{parts[name].strip()}\n"
        page = re.sub(between, lambda found, text=text: found[1] + text + found[2], page, flags=re.DOTALL)  # type: ignore[misc]
    return page
