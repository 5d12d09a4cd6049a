import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from pipeline import storage
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.tracking import Forwarder, Journal, JournalReader, Tracker, mark_as_tracked, parents_of_tracked
from pipeline.tracking.notes import read_run_note
from pipeline.tracking.provenance import code_hash
from tests.services import MLflowServer


def config(tmp_path: Path, *more: str) -> Config:
    return parse([f"home={tmp_path}", *more], "run", "")


def test_repeated_steps_are_read_once(tmp_path: Path) -> None:
    """After an interruption, the steps since the last checkpoint are made and recorded again."""
    url = str(tmp_path / "journal")
    first = Journal(url)
    for step in (10, 20, 30):
        first.append("train", step, {"loss": step / 10})
    first.flush()
    second = Journal(url)
    for step in (20, 30, 40):
        second.append("train", step, {"loss": step / 10})
    second.append("validation", 40, {"psnr": 30})
    second.flush()
    reader = JournalReader(url)
    assert [(r.kind, r.step) for r in reader.new()] == [
        ("train", 10), ("train", 20), ("train", 30), ("train", 40), ("validation", 40),
    ]  # fmt: skip
    assert list(reader.new()) == []
    second.append("train", 50, {"loss": 5})
    assert list(reader.new()) == []
    second.flush()
    assert [r.step for r in reader.new()] == [50]


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_runs_end_in_the_right_state(tmp_path: Path, error: type[BaseException] | None, status: str) -> None:
    tracker = Tracker(config(tmp_path))

    def work() -> str:
        with tracker.run(str(tmp_path / "work"), "name", {}) as run:
            if error:
                raise error
        return run.id

    if error:
        with pytest.raises(error):
            work()
    else:
        work()
    run_id = read_run_note(f"{tmp_path}/work", tracker.uri).runs[""]
    assert mlflow.MlflowClient(tracker.uri).get_run(run_id).info.status == status
    with tracker.run(str(tmp_path / "work"), "name", {}) as run:
        assert run.id == run_id  # resumed work continues the same run
        assert mlflow.MlflowClient(tracker.uri).get_run(run_id).info.status == "RUNNING"


def test_a_run_whose_process_died_is_closed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pipeline.settings.command_line import parse; from pipeline.tracking import Tracker\n"
        + (f"with Tracker(parse(['home={tmp_path}'], 'run', '')).run('{tmp_path}/dead', 'dead', {{}}): os._exit(9)")
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    uri = config(tmp_path).tracking_uri
    run_id = read_run_note(f"{tmp_path}/dead", uri).runs[""]
    client = mlflow.MlflowClient(uri)
    assert client.get_run(run_id).info.status == "RUNNING"
    Tracker(config(tmp_path))
    assert client.get_run(run_id).info.status == "KILLED"


def test_a_server_that_does_not_answer_at_the_start_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MLflow at http://127.0.0.1:9 cannot be used: .* expected a running server"):
        Tracker(config(tmp_path, "tracking.uri=http://127.0.0.1:9"))


@pytest.mark.timeout(300)
def test_nothing_is_lost_when_the_server_is_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(str(tmp_path / "journal"))

    def record(steps: range) -> None:
        for step in steps:
            images = {"crop": journal.save_image(f"crop-{step}", Image.new("RGB", (8, 8)))} if step == 15 else {}
            journal.append("train", step, {"loss": float(step)}, images)
        journal.flush()

    server = MLflowServer(tmp_path / "server")
    server.start()
    try:
        tracker = Tracker(config(tmp_path, f"tracking.uri={server.url}"))
        with tracker.run(str(tmp_path / "work"), "name", {}) as run:
            forwarder = Forwarder(journal.url, run)
            record(range(0, 10))
            forwarder.forward_new()
            server.stop()
            record(range(10, 20))
            assert len(forwarder.forward_new()) == 10  # new records are returned at once, sent or not
            record(range(20, 30))
            forwarder.forward_new()
            assert "does not answer; the run continues without it" in capsys.readouterr().err
            server.start()
            assert forwarder.forward_rest()
        history = mlflow.MlflowClient(tracker.uri).get_metric_history(run.id, "loss")
        assert [(m.step, m.value) for m in history] == [(step, float(step)) for step in range(30)]
        images = mlflow.MlflowClient(tracker.uri).list_artifacts(run.id, "images")
        assert any("crop+step+15" in image.path for image in images)
        assert mlflow.MlflowClient(tracker.uri).get_run(run.id).info.status == "FINISHED"
    finally:
        server.stop()


def test_a_record_that_is_refused_for_good_does_not_hold_up_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(str(tmp_path / "journal"))
    for step, name in enumerate(("loss", "a+b", "loss")):
        journal.append("train", step, {name: float(step)})
    journal.flush()
    tracker = Tracker(config(tmp_path))
    with tracker.run(str(tmp_path / "work"), "name", {}) as run:
        assert Forwarder(journal.url, run).forward_rest()
    assert "rejects a record, which is skipped" in capsys.readouterr().err
    history = mlflow.MlflowClient(tracker.uri).get_metric_history(run.id, "loss")
    assert [m.step for m in history] == [0, 2]


def test_sending_a_journal_twice_adds_nothing(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"))
    for step in range(5):
        journal.append("train", step, {"loss": float(step)})
    journal.flush()
    tracker = Tracker(config(tmp_path))
    with tracker.run(str(tmp_path / "work"), "name", {}) as run:
        for _ in range(2):
            assert Forwarder(journal.url, run).forward_rest()
    history = mlflow.MlflowClient(tracker.uri).get_metric_history(run.id, "loss")
    assert [m.step for m in history] == [0, 1, 2, 3, 4]


def test_each_parent_has_its_own_run_of_a_folder(tmp_path: Path) -> None:
    tracker = Tracker(config(tmp_path))
    folder, ids = str(tmp_path / "work"), []
    for parent in ("", "a" * 32, "b" * 32, "a" * 32):
        with tracker.run(folder, "name", {}, parent) as run:
            ids.append(run.id)
    assert ids[0] == ids[1] == ids[3] != ids[2]  # the first parent takes over the run without one
    assert tracker.find_run(folder) is None
    found = tracker.find_run(folder, "b" * 32)
    assert found is not None
    assert found.id == ids[2]
    assert mlflow.MlflowClient(tracker.uri).get_run(ids[0]).data.tags["mlflow.parentRunId"] == "a" * 32


def test_notes_of_what_mlflow_has_are_checked(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert parents_of_tracked(folder) == []
    for parent in ("", "grid", ""):
        mark_as_tracked(folder, parent)
    assert parents_of_tracked(folder) == ["", "grid"]
    (tmp_path / "tracking.json").write_text('{"uri": "x", "runs": [1]}')
    with pytest.raises(storage.DamagedFileError, match=r"tracking.json is damaged at runs: "):
        read_run_note(folder, "x")


def test_the_hash_of_the_code_covers_the_sub_packages(tmp_path: Path) -> None:
    for name in ("pipeline/a.py", "pipeline/inner/b.py", "sr_model/inner/c.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n")
    hashes = [code_hash(tmp_path)]
    for name in ("pipeline/inner/b.py", "sr_model/inner/c.py"):
        (tmp_path / name).write_text("x = 2\n")
        hashes.append(code_hash(tmp_path))
    (tmp_path / "pipeline/inner/b.py").rename(tmp_path / "pipeline/b.py")
    hashes.append(code_hash(tmp_path))
    assert len(set(hashes)) == 4
    assert all(len(digits) == 12 for digits in hashes)
    assert code_hash() not in hashes
