"""The mark of a finished workflow says where its network is registered."""

from pathlib import Path

from pipeline.settings import Config
from pipeline.settings.command_line import parse
from pipeline.workflow.finished import mark_finished, read_mark


def test_a_network_is_registered_under_a_name_on_a_server(tmp_path: Path) -> None:
    first, second = "tracking.uri=https://user:secret@first", "tracking.uri=https://second"

    def settings(*options: str) -> Config:
        return parse([f"home={tmp_path}", *options], "run", "")

    def is_registered(*options: str) -> bool:
        mark = read_mark(str(tmp_path))
        return mark is not None and mark.is_registered(settings(*options))

    mark_finished(str(tmp_path), settings(first), "scores")
    assert is_registered(first)
    assert is_registered(second)  # finished work needs no MLflow
    assert not is_registered(first, "tracking.register_as=mine")
    for server in (first, second):
        assert not is_registered(server, "tracking.register_as=mine")
        mark_finished(str(tmp_path), settings(server, "tracking.register_as=mine"), "scores")
        assert is_registered(server, "tracking.register_as=mine")
    assert "secret" not in (tmp_path / "finished.json").read_text()
    mark_finished(str(tmp_path), settings(second), "other scores")
    assert not is_registered(first, "tracking.register_as=mine")
    assert is_registered(second, "tracking.register_models=false")
