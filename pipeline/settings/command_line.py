"""How every stage reads its command line: a YAML file and dotted options, validated alike; errors and exit codes.

`parse` turns a command line into a `Config`, `command` gives a stage's entry point its errors and exit codes.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from pipeline.settings.errors import UserError
from pipeline.settings.schema import Config, closest, sentence
from pipeline.storage import one_line


def parse(argv: Sequence[str], module: str, purpose: str) -> Config:
    """`parse_with` no further flags."""
    return parse_with({}, argv, module, purpose)[0]


def parse_with(
    flags: dict[str, str],
    argv: Sequence[str],
    module: str,
    purpose: str,
    fetch: Callable[[Config, str], str] | None = None,
) -> tuple[Config, set[str]]:
    """Read a command line: `--config FILE` and dotted options such as `--train.lr 2e-4` or `train.lr=2e-4`.

    Args:
        flags: switches beside the settings, such as "--dry-run", and what --help says of them.
        argv: the command line.
        module: name of the stage.
        purpose: what the stage is for, a sentence.
        fetch: how to get the YAML file of `--from-run RUN_ID`, given the other settings; without it there is no such
            option.

    Returns:
        The configuration and the flags that were given.

    Raises:
        UserError: for an unknown key or a bad value, in the file or on the command line.
        SystemExit: after `--help`.
    """
    parser = _Parser(
        prog=f"python -m pipeline.{module}",
        usage="%(prog)s [--config FILE] [--KEY VALUE | KEY=VALUE ...]",
        description=f"{purpose} Options override the file.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, such as configs/demo.yaml")
    for flag, effect in flags.items():
        parser.add_argument(flag, action="store_true", dest=flag, help=effect)
    if fetch:
        parser.add_argument("--from-run", metavar="RUN_ID", help="settings of a run in MLflow, to make it again")
    source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
        Config, root_parser=parser, cli_exit_on_error=False
    )
    given = vars(parser.parse_args(_dashed(argv, flags)))
    file, run = given.pop("config"), given.pop("from_run", None)
    if file and run:
        raise UserError(f"--config {file} and --from-run {run} are both given, expected one of them")
    raised = {flag for flag in flags if given.pop(flag)}
    try:
        from_cli = source(parsed_args=given)()
    except SettingsError as error:
        raise UserError(one_line(error)) from None
    try:
        where = f"run {run}" if run else file
        text = fetch(Config(**from_cli), run) if run and fetch else _read_file(file) if file else "{}"
        return Config(**_override(_parse_yaml(text, str(where)), from_cli, Config)), raised
    except ValidationError as error:
        raise UserError(sentence(error, where)) from None


def command(main: Callable[[Sequence[str]], None]) -> Callable[[], None]:
    """Wrap a stage's `main(argv)`: a `UserError` becomes one sentence and exit code 2, an interruption 130."""

    @functools.wraps(main)
    def run() -> None:
        stop_like_interrupt()
        try:
            main(sys.argv[1:])
        except (UserError, OSError) as error:  # an OSError names its file: no permission, no space
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted: run the same command again to go on", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(130)  # a thread may still wait in Ray, whose shutdown would then end the process with another code

    return run


def stop_like_interrupt() -> None:
    """Let SIGTERM end this process as Ctrl-C does; `ray job stop` sends it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _dashed(argv: Sequence[str], flags: Iterable[str]) -> list[str]:
    """Turn bare `key=value` into `--key=value`, but leave the value of a preceding option alone."""
    dashed: list[str] = []
    for arg in argv:
        option = dashed[-1] if dashed else ""
        is_value = option.startswith("--") and "=" not in option and option not in flags
        dashed.append(arg if arg.startswith("-") or is_value or "=" not in arg else f"--{arg}")
    return dashed


def _override(values: dict[str, Any], by: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Merge sections key by key; a setting that is itself a mapping, such as train.loss, is replaced whole."""
    merged = dict(values)
    for key, value in by.items():
        section = model.model_fields[key].annotation if key in model.model_fields else None
        if isinstance(section, type) and issubclass(section, BaseModel) and key in merged:
            if not isinstance(merged[key], dict):
                raise UserError(f"{key} is {merged[key]!r} in the configuration, expected a mapping of settings")
            merged[key] = _override(merged[key], value, section)
        else:
            merged[key] = value
    return merged


def _read_file(file: str) -> str:
    try:
        return Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot read the configuration {file}: {reason}") from None


def _parse_yaml(text: str, where: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where} holds {type(content).__name__}, expected a mapping of settings")
    return {str(key): value for key, value in content.items()}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        if not message.startswith("unrecognized arguments"):
            raise UserError(message)
        if not unknown.startswith("--"):
            raise UserError(f"cannot read {unknown!r}, expected --KEY VALUE or KEY=VALUE")
        key = unknown.removeprefix("--").split("=")[0]
        raise UserError(f"unknown key {key}{closest(key)}; --help lists all")
