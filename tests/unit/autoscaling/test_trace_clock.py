"""The unit of a trace's times: found from the data and stated, or asked for; never wrong by a factor of 1,000."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from raylane.autoscaling.traces.clock import Unit
from raylane.autoscaling.traces.layouts import LayoutName
from raylane.autoscaling.traces.rates import load_rate_curve
from raylane.autoscaling.traces.readers import load_trace, read_trace
from raylane.cluster.errors import UsageError

MOONCAKE = ("timestamp", "input_length", "output_length")
SERVEGEN = ("timestamp", "input_tokens", "output_tokens")
PLAIN = ("t_s", "input_tokens", "output_tokens")
AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
SECONDS = [2.5 + 1.25 * i for i in range(40)]


def jsonl(folder: Path, columns: Sequence[str], times: Sequence[object], **further: object) -> Path:
    path = folder / "trace.jsonl"
    rows = (dict(zip(columns, (at, 64, 16), strict=True)) | further for at in times)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def csv(folder: Path, columns: Sequence[str], times: Sequence[object]) -> Path:
    path = folder / "trace.csv"
    path.write_text(",".join(columns) + "\n" + "".join(f"{at},64,16\n" for at in times), encoding="utf-8")
    return path


def in_unit(per_s: float) -> list[int]:
    return [round(at * per_s) for at in SECONDS]


def unix(per_s: int) -> list[int]:
    return [1_700_000_000 * per_s + round((at - 2.5) * per_s) for at in SECONDS]


@pytest.mark.parametrize(
    ("columns", "times", "unit", "first_s"),
    [
        pytest.param(MOONCAKE, in_unit(1e3), "ms", 2.5, id="Mooncake, milliseconds"),
        pytest.param(MOONCAKE, SECONDS, "s", 2.5, id="Mooncake's columns, seconds with fractions"),
        pytest.param(MOONCAKE, [str(at) for at in in_unit(1e3)], "ms", 2.5, id="numbers as text"),
        pytest.param(MOONCAKE, in_unit(1e3)[::-1], "ms", 2.5, id="out of order"),
        pytest.param(MOONCAKE, [float(at) for at in in_unit(1e3)], "ms", 2.5, id="whole numbers with a point"),
        pytest.param(SERVEGEN, SECONDS, "s", 2.5, id="ServeGen, seconds"),
        pytest.param(PLAIN, SECONDS, "s", 2.5, id="a column of seconds by name"),
        pytest.param(("t_ms", *PLAIN[1:]), in_unit(1e3), "ms", 2.5, id="a column of milliseconds by name"),
        pytest.param(("timestamp_us", *SERVEGEN[1:]), in_unit(1e6), "us", 2.5, id="of microseconds"),
        pytest.param(("timestamp_ms", *MOONCAKE[1:]), SECONDS[:0] + in_unit(1e3), "ms", 2.5, id="Mooncake's, by name"),
        pytest.param(("T_S", "Input Tokens", "output-tokens"), SECONDS, "s", 2.5, id="another spelling"),
        *(pytest.param(columns, unix(per_s), unit, 0.0, id=f"Unix times in {unit}, {columns[0]} {columns[1]}")
          for columns in (PLAIN, MOONCAKE, SERVEGEN, AZURE)
          for unit, per_s in (("ms", 10**3), ("us", 10**6), ("ns", 10**9))),
        *(pytest.param(columns, [1.7e9 + at for at in SECONDS], "s", 0.0, id=f"Unix seconds, {columns[0]} {columns[1]}")
          for columns in (PLAIN, MOONCAKE, SERVEGEN, AZURE)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("write", [jsonl, csv])
def test_the_unit_is_found_and_said(
    write: Callable[..., Path],
    columns: Sequence[str],
    times: Sequence[object],
    unit: Unit,
    first_s: float,
    tmp_path: Path,
) -> None:
    reading = read_trace(write(tmp_path, columns, times))
    assert reading.trace.at_s.tolist() == pytest.approx([at - 2.5 + first_s for at in SECONDS], abs=1e-3)
    assert reading.clock is not None
    assert reading.clock.unit == unit
    words = {"s": "times in seconds", "ms": "times in milliseconds", "us": "microseconds", "ns": "nanoseconds"}
    assert words[unit] in reading.trace.source


def test_bailian_is_known_by_its_columns_and_counts_seconds(tmp_path: Path) -> None:
    path = jsonl(tmp_path, MOONCAKE, SECONDS, chat_id=0, parent_chat_id=-1, type="text", turn=1, hash_ids=[0, 1])
    trace = load_trace(path)
    assert trace.at_s.tolist() == SECONDS
    assert "(bailian layout)" in trace.source


def test_dates_are_read_in_any_layout(tmp_path: Path) -> None:
    dates = [f"2031-05-06 10:00:{second:02d}.500" for second in (0, 3, 20)]
    reading = read_trace(csv(tmp_path, SERVEGEN, dates))
    assert (reading.trace.at_s.tolist(), reading.clock) == ([0.0, 3.0, 20.0], None)
    assert "times are dates" in reading.trace.source


DOUBTFUL = [
    pytest.param(MOONCAKE, [round(at) for at in SECONDS], "0.796/s", id="whole seconds in Mooncake's columns"),
    pytest.param(MOONCAKE, [at * 1e3 + 0.5 for at in SECONDS], "0.8/s", id="milliseconds with fractions"),
    pytest.param(MOONCAKE, [2.5], "2.5", id="one row with a fraction"),
    pytest.param(MOONCAKE, [40 * i for i in range(100)], "25/s", id="four seconds of 25 a second, or an hour"),
    pytest.param(SERVEGEN, in_unit(1e3), "0.8/s", id="milliseconds where ServeGen has seconds"),
    pytest.param(SERVEGEN, [at * 1e3 + 0.5 for at in SECONDS], "0.8/s", id="such with fractions"),
    pytest.param(SERVEGEN, [1000 * (i // 150) for i in range(3000)], "0.15", id="all multiples of 1,000"),
    pytest.param(PLAIN, [i / 12_031 for i in range(12_031)], "12031 requests", id="12,000 requests in a second"),
    pytest.param(PLAIN, [0, 1_700_000_000], "1.7e+09 s", id="half a century"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "times", "says"), DOUBTFUL)
def test_a_doubtful_unit_is_asked_for(
    columns: Sequence[str], times: Sequence[float], says: str, tmp_path: Path
) -> None:
    path = jsonl(tmp_path, columns, times)
    with pytest.raises(UsageError) as caught:
        load_trace(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: {columns[0]}: the unit of times like {times[0]:g} is doubtful")
    assert says in line
    assert "unit: ms" in line
    assert "layout" in line


@pytest.mark.parametrize(("columns", "times", "says"), DOUBTFUL)
def test_what_was_said_is_done(columns: Sequence[str], times: Sequence[float], says: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path, columns, times)
    in_s, in_ms = (read_trace(path, unit=unit).trace for unit in ("s", "ms"))
    assert in_s.at_s.tolist() == pytest.approx(sorted(times))
    assert (in_ms.at_s * 1e3).tolist() == pytest.approx(sorted(times))
    assert "times in milliseconds (as asked)" in in_ms.source


@pytest.mark.parametrize(("layout", "per_s"), [("mooncake", 1e3), ("bailian", 1.0)])
def test_a_layout_by_name_says_the_unit(layout: LayoutName, per_s: float, tmp_path: Path) -> None:
    times = [round(at) for at in SECONDS]
    trace = load_trace(jsonl(tmp_path, MOONCAKE, times), layout)
    assert trace.at_s.tolist() == pytest.approx([at / per_s for at in times])


def test_a_unit_of_dates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="timestamp: holds dates, which have no unit"):
        load_trace(csv(tmp_path, SERVEGEN, ["2031-05-06 10:00:00"]), unit="ms")


@pytest.mark.parametrize("columns", [MOONCAKE, SERVEGEN], ids=["Mooncake", "ServeGen"])
@pytest.mark.parametrize("rps", [0.02, 0.06, 0.2, 0.8, 3.4, 15.0, 45.0, 90.0])
@pytest.mark.parametrize(
    "written",
    [
        pytest.param(lambda at_s: at_s, id="seconds"),
        pytest.param(np.floor, id="whole seconds"),
        pytest.param(lambda at_s: np.floor(at_s * 1e3), id="milliseconds"),
        pytest.param(lambda at_s: np.round(at_s * 1e3, 3), id="milliseconds with fractions"),
    ],
)
def test_no_clock_is_wrong_by_a_factor_of_a_thousand(
    columns: Sequence[str], rps: float, written: Callable[[object], np.ndarray], tmp_path: Path
) -> None:
    at_s = np.cumsum(np.random.default_rng(8).exponential(1 / rps, 1500))
    try:
        trace = load_trace(csv(tmp_path, columns, written(at_s).tolist()))
    except UsageError as error:
        assert "doubtful" in str(error)  # noqa: PT017 - either answer will do
    else:
        assert trace.duration_s == pytest.approx(at_s[-1], rel=0.1)


def test_a_curve_in_unix_times_begins_at_its_first_point(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text("t_s,rate_rps\n1700000000000,4\n1700000060000,8\n")
    assert load_rate_curve(path).t_s.tolist() == [0.0, 60.0]
