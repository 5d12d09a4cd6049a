import getpass
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.tracking import Forwarder, Journal, JournalReader, Tracker, mark_as_tracked, parents_of_tracked
from pipeline.tracking.notes import RunNote, read_run_note, write_run_note
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
def test_runs_end_in_the_right_state(home: Path, error: type[BaseException] | None, status: str) -> None:
    tracker = Tracker(config(home))

    def work() -> str:
        with tracker.run(str(home / "work"), "name", {}) as run:
            if error:
                raise error
        return run.id

    if error:
        with pytest.raises(error):
            work()
    else:
        work()
    run_id = read_run_note(f"{home}/work", tracker.uri).runs[""]
    assert mlflow.MlflowClient(tracker.uri).get_run(run_id).info.status == status
    with tracker.run(str(home / "work"), "name", {}) as run:
        assert run.id == run_id  # resumed work continues the same run
        assert mlflow.MlflowClient(tracker.uri).get_run(run_id).info.status == "RUNNING"


def test_a_run_whose_process_died_is_closed_by_the_next(home: Path) -> None:
    code = (
        "import os, sys; from pipeline.settings.command_line import parse; from pipeline.tracking import Tracker\n"
        + (f"with Tracker(parse(['home={home}'], 'run', '')).run('{home}/dead', 'dead', {{}}): os._exit(9)")
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    uri = config(home).tracking_uri
    run_id = read_run_note(f"{home}/dead", uri).runs[""]
    client = mlflow.MlflowClient(uri)
    assert client.get_run(run_id).info.status == "RUNNING"
    Tracker(config(home))
    assert client.get_run(run_id).info.status == "KILLED"


def test_a_running_run_with_an_odd_tag_stops_nobody(home: Path) -> None:
    tracker = Tracker(config(home))
    client = mlflow.MlflowClient(tracker.uri)
    host = platform.node()
    for tag in ("", "no process", f"{host}:²", f"{host}:-1", f"{host}:{10**30}", f"{host}:0", ":0", f"{host}:"):
        client.create_run(tracker.experiment_id, tags={"sr.process": tag})
    Tracker(config(home))
    assert {run.info.status for run in client.search_runs([tracker.experiment_id])} == {"RUNNING"}


def test_a_run_says_who_made_it_and_how_to_rerun_it_from_any_folder(tmp_path: Path) -> None:
    home = tmp_path / "my home"
    tracker = Tracker(config(home))
    with tracker.run(str(home / "work"), "name", {}) as run:
        pass
    tags = mlflow.MlflowClient(tracker.uri).get_run(run.id).data.tags
    assert tags["mlflow.user"] == getpass.getuser()
    (command,) = [line for line in tags["mlflow.note.content"].splitlines() if line.startswith("python ")]
    program, _, module, *argv = shlex.split(command)
    assert (program, module) == ("python", "pipeline.run")
    assert argv == ["--from-run", run.id, "--home", str(home), "--tracking.uri", tracker.uri]
    (experiment,) = mlflow.MlflowClient(tracker.uri).search_experiments(filter_string="name = 'super-resolution'")
    assert "PSNR of the held-out images" in experiment.tags["mlflow.note.content"]
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_an_own_description_of_the_experiment_stays(home: Path) -> None:
    client = mlflow.MlflowClient(config(home).tracking_uri)
    number = client.create_experiment("super-resolution", tags={"mlflow.note.content": "mine"})
    assert Tracker(config(home)).experiment_id == number
    assert client.get_experiment(number).tags["mlflow.note.content"] == "mine"


def test_no_secret_of_a_url_reaches_mlflow_or_a_note(home: Path) -> None:
    secret = "https://user:p@ss/QQword@host/x.zip?sig=QQsig"
    settings = config(home, f"source={secret}")
    tracker = Tracker(settings)
    with tracker.run(str(home / "work"), f"evaluate {secret}", {"where": secret}) as run:
        run.describe({"source": secret}, settings)
        run.set_tags({"more": secret})
        run.log_dataset(f"data of {secret}", "digest", secret, {})
    kept = mlflow.MlflowClient(tracker.uri).get_run(run.id)
    assert kept.data.params["source"] == "https://host/x.zip?sig=***"
    assert kept.info.run_name == "evaluate https://host/x.zip?sig=***"
    note = home / "work" / "tracking.json"
    assert note.stat().st_mode & 0o777 == 0o600
    written = [file.read_bytes() for file in home.rglob("*") if file.is_file()]
    assert len(written) >= 3
    assert not [content for content in written if b"QQ" in content]


def test_the_note_of_a_run_has_no_password(tmp_path: Path) -> None:
    uri = "postgresql://user:pw@host/mlflow"
    note = read_run_note(str(tmp_path), uri)
    write_run_note(str(tmp_path), replace(note, runs={"": "a" * 32}))
    assert "pw" not in (tmp_path / "tracking.json").read_text()
    assert read_run_note(str(tmp_path), uri).runs == {"": "a" * 32}


def test_a_note_of_an_earlier_version_is_still_found(tmp_path: Path) -> None:
    uri = "postgresql://user:pw@host/mlflow"
    (tmp_path / "tracking.json").write_text(json.dumps({"uri": uri, "runs": {"": "a" * 32}}))
    assert read_run_note(str(tmp_path), uri).runs == {"": "a" * 32}
    assert read_run_note(str(tmp_path), "postgresql://host/other").runs == {}


def test_small_images_are_enlarged_to_be_judged(home: Path) -> None:
    tracker = Tracker(config(home))
    client = mlflow.MlflowClient(tracker.uri)
    with tracker.run(str(home / "work"), "name", {}) as run:
        for width in (480, 2000):
            assert run.log_image(Image.effect_noise((width, 160), 50), f"strip{width}", 1)
    files = [file.path for file in client.list_artifacts(run.id, "images") if file.path.endswith(".png")]
    sizes = {Image.open(client.download_artifacts(run.id, file)).size for file in files}
    assert sizes == {(960, 320), (2000, 160)}


def test_the_machine_is_measured_while_training(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(config(home))
    journal = Journal(str(home / "journal"))
    journal.append("train", 7, {"loss": 1.0})
    journal.flush()
    client = mlflow.MlflowClient(tracker.uri)

    def measured() -> dict[str, float]:
        with tracker.run(str(home / "work"), "name", {}) as run:
            forwarder = Forwarder(journal.url, run)
            forwarder.forward_new()
            for _ in range(3):
                forwarder.forward_system_metrics()
        return {key: value for key, value in client.get_run(run.id).data.metrics.items() if key.startswith("system/")}

    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    assert measured() == {}
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING")
    values = measured()
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(values)
    assert values["system/system_memory_usage_megabytes"] > 10
    run_id = read_run_note(f"{home}/work", tracker.uri).runs[""]
    history = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert [metric.step for metric in history] == [7]  # not more often than every few seconds


def test_a_machine_that_cannot_be_measured_ends_no_training(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries: list[None] = []
    monkeypatch.setattr("psutil.virtual_memory", lambda: tries.append(None))  # None, as in some containers
    monkeypatch.setattr("pipeline.tracking.forwarding._SYSTEM_EVERY_S", 0)
    with Tracker(config(home)).run(str(home / "work"), "name", {}) as run:
        forwarder = Forwarder(str(home / "journal"), run)
        for _ in range(3):
            forwarder.forward_system_metrics()
    assert len(tries) == 1
    assert "MLflow gets no system metrics, because this machine cannot be measured (" in capsys.readouterr().err


def test_a_server_that_does_not_answer_at_the_start_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MLflow at http://127.0.0.1:9 cannot be used: .* expected a running server"):
        Tracker(config(tmp_path, "tracking.uri=http://127.0.0.1:9"))


@pytest.mark.long
@pytest.mark.timeout(300)
def test_nothing_is_lost_when_the_server_is_away(
    tmp_path: Path, make_home: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(str(tmp_path / "journal"))

    def record(steps: range) -> None:
        for step in steps:
            images = {"crop": journal.save_image(f"crop-{step}", Image.new("RGB", (8, 8)))} if step == 15 else {}
            journal.append("train", step, {"loss": float(step)}, images)
        journal.flush()

    server = MLflowServer(make_home(tmp_path / "server"))
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
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(str(home / "journal"))
    for step, name in enumerate(("loss", "a+b", "loss")):
        journal.append("train", step, {name: float(step)})
    journal.flush()
    tracker = Tracker(config(home))
    with tracker.run(str(home / "work"), "name", {}) as run:
        assert Forwarder(journal.url, run).forward_rest()
    assert "rejects a record, which is skipped" in capsys.readouterr().err
    history = mlflow.MlflowClient(tracker.uri).get_metric_history(run.id, "loss")
    assert [m.step for m in history] == [0, 2]


def test_sending_a_journal_twice_adds_nothing(home: Path) -> None:
    journal = Journal(str(home / "journal"))
    for step in range(5):
        journal.append("train", step, {"loss": float(step)})
    journal.flush()
    tracker = Tracker(config(home))
    with tracker.run(str(home / "work"), "name", {}) as run:
        for _ in range(2):
            assert Forwarder(journal.url, run).forward_rest()
    history = mlflow.MlflowClient(tracker.uri).get_metric_history(run.id, "loss")
    assert [m.step for m in history] == [0, 1, 2, 3, 4]


def test_each_parent_has_its_own_run_of_a_folder(home: Path) -> None:
    tracker = Tracker(config(home))
    folder, ids = str(home / "work"), []
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


@pytest.mark.parametrize("content", ["", "{", '{"uri": "x", "runs": [1]}', '["x"]'])
def test_damaged_notes_count_as_missing(home: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(home)
    for name in ("tracking.json", "tracked.json"):
        (home / name).write_text(content)
    assert read_run_note(folder, "x") == RunNote("x")
    assert parents_of_tracked(folder) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{folder}/tracking.json is damaged")
    assert line.endswith("; MLflow gets new runs of this work")
    with Tracker(config(home)).run(folder, "name", {}) as run:
        pass
    mark_as_tracked(folder, "")
    assert read_run_note(folder, config(home).tracking_uri).runs == {"": run.id}
    assert parents_of_tracked(folder) == [""]


def test_damaged_lines_of_a_journal_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(str(tmp_path))
    for step in (10, 20, 30):
        journal.append("train", step, {"loss": 1.0})
    journal.flush()
    (file,) = tmp_path.glob("*.jsonl")
    first, second, third = file.read_text().splitlines()
    outside = second.replace('"images": {}', '"images": {"crop": "../../secret.png"}')
    assert outside != second
    file.write_text("\n".join([first, "", outside, '{"kind": "other"}', "[]", third[:-9]]))
    assert [record.step for record in JournalReader(journal.url).new()] == [10]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{file} is damaged: the lines that are no records are skipped"


def test_a_damaged_image_of_a_journal_is_left_out(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(f"{home}/journal")
    for step in (10, 20):
        image = journal.save_image(f"crop-{step}", Image.new("RGB", (8, 8)))
        journal.append("validation", step, {"psnr": float(step)}, {"crop": image})
    journal.flush()
    (home / "journal/images/crop-10.png").write_bytes(b"\x89PNG no more")
    tracker = Tracker(config(home))
    with tracker.run(str(home), "name", {}) as run:
        assert Forwarder(journal.url, run).forward_rest()
    assert "crop-10.png is damaged: MLflow does not get this image" in capsys.readouterr().err
    client = mlflow.MlflowClient(tracker.uri)
    assert [m.step for m in client.get_metric_history(run.id, "psnr")] == [10, 20]
    assert sum(file.path.endswith(".png") for file in client.list_artifacts(run.id, "images")) == 1


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
