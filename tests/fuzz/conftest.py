"""Collect what became of the inputs, and print a table of it at the end of `make fuzz`."""

import os
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from tests.fuzz.campaign import MEMORY, TALLIES, Tally


@pytest.fixture(autouse=True)
def _collected(record_property: pytest.FixtureRequest) -> Iterator[None]:
    """Add the tallies of a test to its report, with which they reach the process that prints."""
    TALLIES.clear()
    yield
    record_property("tallies", [asdict(tally) for tally in TALLIES])  # type: ignore[operator]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table. Pytest calls this only if the folder of this file was named on its command line."""
    reports = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "when")]
    tallies = [
        Tally(**tally)
        for report in reports
        if report.when == "teardown" and "test_campaign.py" not in report.nodeid
        for key, value in report.user_properties
        if key == "tallies"
        for tally in value
    ]
    if not tallies or os.environ.get("PYTEST_XDIST_WORKER"):
        return
    rows: dict[str, Tally] = {}
    for tally in tallies:
        row = rows.setdefault(tally.name, Tally(tally.name))
        row.inputs, row.refused, row.faults = (
            row.inputs + tally.inputs, row.refused + tally.refused, row.faults + tally.faults,
        )  # fmt: skip
        row.slowest, row.peak_mb = max(row.slowest, tally.slowest), max(row.peak_mb, tally.peak_mb)
    total = Tally(
        "all",
        sum(row.inputs for row in rows.values()),
        sum(row.refused for row in rows.values()),
        sum(row.faults for row in rows.values()),
        max(row.slowest for row in rows.values()),
        max(row.peak_mb for row in rows.values()),
    )
    terminalreporter.section("damaged inputs")
    terminalreporter.write_line(
        f"{'kind':24}{'inputs':>8}{'refused':>9}{'faults':>8}{'slowest, s':>12}{'peak, MiB':>11}"
    )
    for row in [*sorted(rows.values(), key=lambda row: row.name.lower()), total]:
        terminalreporter.write_line(
            f"{row.name:24}{row.inputs:8,}{row.refused:9,}{row.faults:8,}{row.slowest:12.2f}{row.peak_mb:11.0f}"
        )
    terminalreporter.write_line(
        f"The peak is memory beyond that at the start of a campaign, which is limited to {MEMORY // 2**20:,} MiB."
    )
