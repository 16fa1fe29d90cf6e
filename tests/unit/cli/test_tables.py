"""How wide tables are, and what is never cut off."""

import io

import pytest
from rich.console import Console

from raylane.cli.status import replica_table
from raylane.cli.tables import table_console
from raylane.deployments.directory.reports import ReplicaReport, ReplicaState


@pytest.mark.parametrize(("columns", "width"), [(None, 200), ("90", 90)])
def test_a_pipe_is_not_cut_to_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str | None, width: int
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    table_console().rule(characters="-")
    assert capsys.readouterr().out == "-" * width + "\n"


def test_replica_ids_are_whole_on_a_narrow_terminal() -> None:
    replicas = [
        ReplicaReport(name, "a-model-with-a-long-name", ReplicaState.READY, "http://h:1", "secret", "192.0.2.200")
        for name in ("m00t5ln9", "x")
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(replica_table(replicas, []))
    assert "m00t5ln9" in console.file.getvalue()  # type: ignore[attr-defined]
