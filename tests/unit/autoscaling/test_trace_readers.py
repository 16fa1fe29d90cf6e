import gzip
from pathlib import Path

import numpy as np
import pytest

from raylane.autoscaling.traces.layouts import LAYOUTS, LayoutName
from raylane.autoscaling.traces.readers import load_trace, read_trace
from raylane.cluster.errors import UsageError

SAMPLES = Path(__file__).parents[2] / "fixtures" / "traces"


@pytest.mark.parametrize(
    ("file", "at_s", "tokens"),
    [
        pytest.param(
            "azure2023.csv",
            [0.0, 2.2512345, 2.2512345, 8.5, 10.0],
            [(310, 41), (620, 12), (75, 130), (2040, 7), (18, 256)],
            id="Azure 2023: times without zone, seven decimals",
        ),
        pytest.param(
            "azure2024.csv",
            [0.0, 0.75, 0.875, 3.75, 86399.0],
            [(1510, 9), (33, 204), (480, 77), (902, 15), (64, 31)],
            id="Azure 2024: times with zone, some without decimals",
        ),
        pytest.param(
            "burstgpt.csv",
            [0.0, 12.0, 24.0],
            [(210, 35), (88, 140), (400, 61)],
            id="BurstGPT: failed requests left out",
        ),
        pytest.param(
            "burstgpt_sessions.csv",
            [0.0, 3.0, 4.0, 60.0],
            [(15, 250), (610, 44), (320, 18), (90, 112)],
            id="BurstGPT with session columns in the middle",
        ),
        pytest.param(
            "mooncake.jsonl",
            [0.0, 0.0, 3.0, 3.0, 6.5],
            [(5200, 310), (710, 25), (9100, 480), (64, 2), (1400, 95)],
            id="Mooncake: milliseconds",
        ),
        pytest.param(
            "servegen.csv",
            [0.125, 0.5, 1.75, 8.0, 20.25],
            [(140, 22), (933, 61), (57, 300), (210, 14), (1800, 2)],
            id="ServeGen: seconds from the file's own zero",
        ),
        pytest.param(
            "plain.csv",
            [0.5, 1.25, 1.25, 30.0, 100.0],
            [(128, 40), (700, 12), (64, 90), (2500, 5), (31, 210)],
            id="plain columns and one more",
        ),
    ],
)
@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gzipped"])
def test_public_layouts_are_known_by_their_header(
    file: str, at_s: list[float], tokens: list[tuple[int, int]], gzipped: bool, tmp_path: Path
) -> None:
    path = SAMPLES / file
    if gzipped:
        path = tmp_path / f"{file}.gz"
        path.write_bytes(gzip.compress((SAMPLES / file).read_bytes()))
    trace = load_trace(path)
    assert trace.at_s.tolist() == pytest.approx(at_s, abs=1e-6)
    assert list(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True)) == tokens
    assert trace.name == file.removesuffix(".csv").removesuffix(".jsonl")
    assert trace.duration_s == pytest.approx(at_s[-1], abs=1e-6)


def test_failed_requests_are_counted() -> None:
    reading = read_trace(SAMPLES / "burstgpt.csv")
    assert (reading.rows, reading.without_output, reading.without_input, len(reading.trace)) == (5, 2, 0, 3)
    assert "5 rows; 2 rows without output left out" in reading.trace.source


def test_sorting_is_stated() -> None:
    assert read_trace(SAMPLES / "burstgpt_sessions.csv").sorted_here
    assert "sorted by arrival" in load_trace(SAMPLES / "burstgpt_sessions.csv").source
    assert not read_trace(SAMPLES / "burstgpt.csv").sorted_here


def test_one_model_of_a_mixed_trace() -> None:
    reading = read_trace(SAMPLES / "burstgpt.csv", only_model="GPT-4")
    assert reading.trace.model == "GPT-4"
    assert reading.trace.input_tokens.tolist() == [88]
    assert reading.without_output == 1


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_a_layout_can_be_named_where_the_header_fits_two(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "t_s,timestamp,input_tokens,output_tokens\n1,10,5,6\n2,20,7,8\n")
    assert load_trace(path).at_s.tolist() == [1.0, 2.0]
    assert load_trace(path, "servegen").at_s.tolist() == [10.0, 20.0]


@pytest.mark.parametrize(
    ("times", "at_s", "moved"),
    [
        pytest.param((1_700_000_000.0, 1_700_000_001.5), [0.0, 1.5], True, id="Unix time"),
        pytest.param((39_600.0, 39_601.0), [39_600.0, 39_601.0], False, id="a morning on the day's clock"),
        pytest.param((1e6, 2e6), [1e6, 2e6], False, id="a quiet week before a fortnight"),
    ],
)
def test_a_zero_far_before_the_first_request_is_another_clock(
    tmp_path: Path, times: tuple[float, ...], at_s: list[float], moved: bool
) -> None:
    trace = load_trace(written(tmp_path / "t.csv", HEAD + "".join(f"{t},5,5\n" for t in times)))
    assert trace.at_s.tolist() == at_s
    assert ("clock set to 0 at the first request" in trace.source) is moved


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("t_s,input_tokens,output_tokens\r\n1,5,6\r\n2,7,8\r\n", id="lines ended as on Windows"),
        pytest.param("\ufefft_s,input_tokens,output_tokens\n1,5,6\n2,7,8", id="a byte order mark, no last newline"),
        pytest.param("t_s,input_tokens,output_tokens\n1,5,6\n2,7,8\n\n\n", id="empty lines at the end"),
        pytest.param("t_s, input_tokens, output_tokens\n1, 5, 6\n2, 7, 8\n", id="blanks after the commas"),
        pytest.param('"t_s","input_tokens","output_tokens"\n1,5.0,6.0\n2,7.0,8.0\n', id="quotes, whole floats"),
        pytest.param('{"t_s": 1, "input_tokens": 5, "output_tokens": 6}\n'
                     '{"output_tokens": 8, "t_s": 2.0, "input_tokens": 7}\n\n', id="objects with keys in any order"),
    ],
)  # fmt: skip
def test_harmless_differences_are_read(text: str, tmp_path: Path) -> None:
    trace = load_trace(written(tmp_path / "t.csv", text))
    assert (trace.at_s.tolist(), trace.input_tokens.tolist()) == ([1.0, 2.0], [5, 7])


HEAD = "t_s,input_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
OBJECT = '{"timestamp": 1, "input_length": 5, "output_length": 6}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(HEAD + "1,5,6\n-2,7,8\n", r"line 3: t_s: '-2' is below 0", id="a negative time"),
        pytest.param(HEAD + "1,5,6\n2,-7,8\n", r"line 3: input_tokens: '-7' is below 0", id="negative tokens"),
        pytest.param(HEAD + "1,5,NaN\n", r"line 2: output_tokens: 'NaN' is not a number", id="NaN"),
        pytest.param(HEAD + "inf,5,6\n", r"line 2: t_s: 'inf' is not a number", id="infinity"),
        pytest.param(HEAD + "1,5,6\n2,many,8\n", r"line 3: input_tokens: 'many' is not a number", id="words"),
        pytest.param(HEAD + "1,5.5,6\n", r"line 2: input_tokens: '5.5' is not a whole number", id="half a token"),
        pytest.param(HEAD + "1,3000000000,6\n", r"'3000000000' is above 2147483647", id="too many tokens"),
        pytest.param(HEAD + "1,5\n", r"line 2: output_tokens: \(nothing\) is not a number", id="a row cut short"),
        pytest.param(HEAD + "1,5,6\n\n2,7,8\n", r"line 3: t_s: \(nothing\)", id="an empty line in the middle"),
        pytest.param(HEAD, r"has a header and no rows", id="a header alone"),
        pytest.param(HEAD + "1,5,0\n2,6,0\n", r"none of 2 rows", id="only failed requests"),
        pytest.param("", r"line 1: is empty", id="an empty file"),
        pytest.param("a,b\n1,2\n", r"line 1: columns a, b fit no known layout \(plain: t_s", id="unknown columns"),
        pytest.param("t_s,rate_rps\n1,2\n", r"holds rates, not requests", id="a rate curve"),
        pytest.param(AZURE + "2031-01-01 00:00:00,5,6\nsoon,7,8\n", r"line 3: TIMESTAMP: 'soon' is not an ISO 8601",
                     id="a time in words"),
        pytest.param(OBJECT + "{oops}\n", r"line 2: not JSON", id="not JSON"),
        pytest.param(OBJECT + "[1, 2]\n", r"line 2: a JSON object was expected, got \[1, 2\]", id="a JSON list"),
        pytest.param(OBJECT + '{"timestamp": 2, "input_length": 5}\n', r"line 2: has no output_length",
                     id="a key less"),
        pytest.param(OBJECT.replace("5", '"x"'), r"line 1: input_length: 'x' is not a number", id="text in JSON"),
        pytest.param(OBJECT.replace("5", "null"), r"line 1: input_length: None is not a number", id="null in JSON"),
        pytest.param(OBJECT + "\n" + OBJECT, r"line 2: is empty", id="an empty line among objects"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_the_place(text: str, says: str, tmp_path: Path) -> None:
    path = written(tmp_path / "bad.csv", text)
    with pytest.raises(UsageError, match=says) as error:
        load_trace(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        pytest.param(None, "t.csv", "No such file", id="no file"),
        pytest.param(b"no gzip", "t.csv.gz", "cannot be read", id="a name that promises gzip"),
        pytest.param(gzip.compress(HEAD.encode() * 500)[:-20], "t.csv.gz", "cannot be read", id="a gzip cut short"),
        pytest.param(b"\xff\xfe\x00", "t.csv", "not UTF-8", id="bytes that are no text"),
    ],
)
def test_unreadable_files_are_refused(content: bytes | None, name: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        load_trace(path)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_named_layout_asks_for_its_columns(layout: LayoutName, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"column {LAYOUTS[layout].at} is missing"):
        load_trace(written(tmp_path / "t.csv", "a,b,c\n1,2,3\n"), layout)


def test_a_model_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"no request of model 'GPT-9', it has ChatGPT, GPT-4"):
        load_trace(SAMPLES / "burstgpt.csv", only_model="GPT-9")
    with pytest.raises(UsageError, match="has no column with models"):
        load_trace(SAMPLES / "plain.csv", only_model="GPT-4")


def test_a_long_file_is_read_in_full_and_equal_times_stay_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    rows = [(int(t), *map(int, tokens)) for t, *tokens in rng.integers(1, 50, (50_000, 3))]
    trace = load_trace(written(tmp_path / "long.csv", HEAD + "".join(f"{t},{i},{o}\n" for t, i, o in rows)))
    read = zip(trace.at_s.tolist(), trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
    assert list(read) == sorted(rows, key=lambda row: row[0])
