"""Drawings of the reports: they are the same on each run, and show texts as they are."""

from __future__ import annotations

import io

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

matplotlib.use("Agg")  # works without a display
matplotlib.rcParams["svg.hashsalt"] = "report"  # the same drawing gives the same file


def plain_text(text: str) -> str:
    """Return a text that matplotlib shows as it is: it would take what is between two dollar signs for a formula."""
    return text.replace("$", r"\$")


def rendered(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file of a kind, "png" or "svg", and close it."""
    sink = io.BytesIO()
    figure.savefig(sink, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
    return sink.getvalue()
