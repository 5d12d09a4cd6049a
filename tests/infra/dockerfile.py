"""Read `infra/Dockerfile`."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field

from tests.conftest import ROOT

FILE = ROOT / "infra" / "Dockerfile"


@dataclass
class Stage:
    """A stage of the build, with its instructions in order."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def arguments(self, instruction: str) -> list[str]:
        """Return the arguments of each instruction of this kind."""
        return [rest for name, rest in self.instructions if name == instruction]


def read_stages() -> dict[str, Stage]:
    """Return the stages by name."""
    text = re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    stages: dict[str, Stage] = {}
    stage = Stage("", "")
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if name == "FROM":
            base, _, alias = rest.partition(" AS ")
            stage = stages[alias] = Stage(alias, base)
        elif name:
            stage.instructions.append((name, rest))
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """Return a stage and those that it is built on, itself first."""
    found = [stages[name]]
    while found[-1].base in stages:
        found.append(stages[found[-1].base])
    return found


def commands(stage: Stage) -> list[list[str]]:
    """Return the words of all commands of a stage that a shell runs."""
    words = [shlex.split(run, posix=True) for run in stage.arguments("RUN")]
    found: list[list[str]] = []
    for line in words:
        command: list[str] = []
        for word in line:
            if word in ("&&", ";;", ";", "esac"):
                found.append(command)
                command = []
            else:
                command.append(word)
        found.append(command)
    return found
