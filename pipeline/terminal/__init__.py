"""Progress on the screen: one live line on a terminal, plain lines in a pipe or a file."""

from pipeline.terminal.stages import LINE_EVERY_S, Stage, duration, make_console, stage

__all__ = ["LINE_EVERY_S", "Stage", "duration", "make_console", "stage"]
