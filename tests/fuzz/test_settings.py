"""Mutated files of settings are read or are refused in one sentence."""

import random
import re
from pathlib import Path

import pytest
import yaml

from pipeline.settings import UserError
from pipeline.settings.command_line import parse
from tests.conftest import ROOT
from tests.fuzz.campaign import Campaign, whole_campaign
from tests.fuzz.mutations import mutate_bytes, mutate_value

SEEDS = [(ROOT / "configs" / name).read_text() for name in ("demo.yaml", "grid.yaml", "photos.yaml")]

PIECES = (
    "&a [*a]", "*a", "&a {x: *a}", "!!python/object/apply:os.system ['true']", "!!binary |\n  aGk=", "!!set {a, b}",
    "2026-13-45", "0o17", "0x" + "f" * 400, "1_000", "1e400", ".nan", "-.inf", "~", "'", '"', "{", "[" * 3000,
    "- " * 500, "? a\n: b", "<<: {train: {lr: 1}}", "--- \n...\n---", "\t", "\0", "\ufeff", "\u2028",
    "%YAML 9.9\n---", "|", ">", "#",
)  # fmt: skip
"""Pieces of YAML with a meaning of their own."""


def mutate_yaml(random_: random.Random) -> bytes:
    """Return a file of settings after changes of its values, its text or its bytes."""
    text = random_.choice(SEEDS)
    how = random_.random()
    if how < 0.5:
        value = mutate_value(random_, yaml.safe_load(text))
        try:
            return yaml.safe_dump(value, allow_unicode=True).encode(errors="surrogatepass")
        except yaml.YAMLError:
            return repr(value).encode(errors="surrogatepass")
    if how < 0.8:
        spots = [match.start() for match in re.finditer(r"[:,\n\[\]{} ]", text)]
        for _ in range(random_.choice((1, 1, 2))):
            spot = random_.choice(spots)
            piece = random_.choice(PIECES)
            glue = random_.choice((" {} ", ": {}\n", "{}"))
            text = text[:spot] + glue.replace("{}", piece) + text[spot:]
        return text.encode(errors="surrogatepass")
    return mutate_bytes(random_, [text.encode()])


@pytest.mark.parametrize("count", [25, pytest.param(2000, marks=whole_campaign)])
def test_mutated_settings(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "settings.yaml"

    def use(content: bytes) -> None:
        file.write_bytes(content)
        config = parse(["--config", str(file)], "run", "")
        assert config.outputs

    Campaign("settings", mutate_yaml, use, (UserError,), tmp_path).run(count)
