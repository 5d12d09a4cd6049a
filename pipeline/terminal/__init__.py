"""Progress on the screen: one live line on a terminal, plain lines in a pipe or a file, or lines of JSON."""

from pipeline.terminal.json_lines import LogContext, log_context, logged_as, print_json
from pipeline.terminal.stages import LINE_EVERY_S, Stage, duration, make_console, stage, stage_name

__all__ = [
    "LINE_EVERY_S",
    "LogContext",
    "Stage",
    "duration",
    "log_context",
    "logged_as",
    "make_console",
    "print_json",
    "stage",
    "stage_name",
]
