"""Mutated records, journals and other JSON files of the pipeline are read or are called damaged in one sentence."""

import json
import random
import shutil
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from pipeline import storage
from pipeline.evaluation.scores import Scores
from pipeline.reporting import records
from pipeline.settings import UserError
from pipeline.tracking import JournalRecord, TrainingResult
from pipeline.tracking.journal import Journal, JournalReader
from pipeline.tracking.notes import RunNote, SentImages
from tests.conftest import ROOT
from tests.fuzz.campaign import Campaign, whole_campaign
from tests.fuzz.mutations import mutate_bytes, mutate_json

RECORD = ROOT / "docs/results/nobn-mse/record.json"


def small_record() -> bytes:
    """Return a shipped record with a short history and few scores, so that changes reach all of its parts."""
    record = json.loads(RECORD.read_bytes())
    record["history"] = record["history"][:3] + record["history"][-2:]
    for entry in record["scores"].values():
        entry["images"] = entry["images"][:2]
    return json.dumps(record).encode()


@pytest.mark.parametrize("count", [35, pytest.param(1500, marks=whole_campaign)])
def test_mutated_records(tmp_path: Path, count: int) -> None:
    whole = small_record()
    label = json.loads(whole)["label"]
    folder = tmp_path / records.folder_name(label)
    folder.mkdir()
    shutil.copy(RECORD.with_name("model.safetensors"), folder)

    def use(content: bytes) -> None:
        (folder / "record.json").write_bytes(content)
        found = records.read(str(tmp_path), label)
        assert found is not None
        assert records.read_all(str(tmp_path)) == [found] or "nan" in repr(found)
        records.initial_record(str(tmp_path), found)
        assert records.provenance(found)
        records.configuration(found)

    def make(random_: random.Random) -> bytes:
        return mutate_json(random_, [whole])

    Campaign("records", make, use, (storage.DamagedFileError, UserError), tmp_path).run(count)


@pytest.mark.parametrize("count", [35, pytest.param(1500, marks=whole_campaign)])
def test_mutated_journals(tmp_path: Path, count: int) -> None:
    journal = Journal(str(tmp_path / "whole"))
    journal.append("session", 0, {"workers": 1})
    for step in (10, 20):
        journal.append("train", step, {"train/objective": 0.5, "train/lr": 1e-4})
        journal.append("validation", step, {"val/psnr_y": 27.5}, {"val/a": "images/a.png"})
    journal.flush()
    (file,) = (tmp_path / "whole").glob("*.jsonl")
    whole = file.read_bytes().splitlines()
    (tmp_path / "changed").mkdir()

    def make(random_: random.Random) -> bytes:
        lines = list(whole)
        for _ in range(random_.choice((1, 2))):
            lines[random_.randrange(len(lines))] = mutate_json(random_, whole)
        content = b"\n".join(lines) + b"\n"
        return mutate_bytes(random_, [content]) if random_.random() < 0.3 else content

    def use(content: bytes) -> None:
        (tmp_path / "changed" / file.name).write_bytes(content)
        for record in JournalReader(str(tmp_path / "changed")).new():
            assert isinstance(record, JournalRecord)
            assert record.step >= 0

    Campaign("journals", make, use, (), tmp_path).run(count)


def scores_seed() -> bytes:
    record = json.loads(small_record())
    return json.dumps({"identity": "x", "protocol": "y", "sets": record["scores"]}).encode()


SEEDS: dict[type, bytes] = {
    Scores: scores_seed(),
    TrainingResult: json.dumps(json.loads(RECORD.read_bytes())["result"]).encode(),
    RunNote: TypeAdapter(RunNote).dump_json(RunNote("sqlite:///x", {"": "1", "2": "3"})),
    SentImages: TypeAdapter(SentImages).dump_json(SentImages(["images/a.png"])),
}


@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.parametrize("count", [20, pytest.param(500, marks=whole_campaign)])
def test_mutated_documents(tmp_path: Path, kind: type, count: int) -> None:
    file = tmp_path / "document.json"

    def use(content: bytes) -> None:
        file.write_bytes(content)
        found = storage.read_document(str(file), kind)
        assert isinstance(found, kind)
        storage.write_document(str(file), found)

    def make(random_: random.Random) -> bytes:
        return mutate_json(random_, [SEEDS[kind]])

    Campaign(kind.__name__, make, use, (storage.DamagedFileError,), tmp_path).run(count)
