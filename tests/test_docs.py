"""The documentation: links lead somewhere, and the commands and files that it names exist."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def _headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        assert not anchor or anchor in _headings(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_configurations_exist(page: Path) -> None:
    text = page.read_text()
    for module in re.findall(r"python -m ((?:pipeline|benchmarks)[\w.]*\w)", text):
        assert module.endswith(".NAME") or importlib.util.find_spec(module), module
    for file in re.findall(r"\b((?:configs|benchmarks|infra)/[\w-]+\.(?:py|yaml))\b", text):
        assert (ROOT / file).exists(), file
