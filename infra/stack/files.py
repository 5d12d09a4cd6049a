"""Files that only their owner can read, and what a stack keeps from one start to the next."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from infra.stack.processes import is_free, lasting_port


def write_private(file: Path, content: str) -> None:
    """Write a text file that only its owner can read; an interruption leaves the old content or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as sink:
        sink.write(content)
    part.rename(file)


class Note:
    """Ports and secrets that a stack chooses at its first start and keeps, in a file that only its owner can read.

    Args:
        file: the file; it need not exist.
        usual_ports: whether new ports are the usual ones where these are free.
    """

    def __init__(self, file: Path, usual_ports: bool = False) -> None:
        self._file, self._usual_ports = file, usual_ports
        content = json.loads(file.read_text()) if file.exists() else {}
        self._ports: dict[str, int] = content.get("ports", {})
        self._secrets: dict[str, str] = content.get("secrets", {})

    def port(self, name: str, usual: int | None = None) -> int:
        """Return the port of a server: the noted one, else the usual one if wanted and free, else any free one."""
        if name not in self._ports:
            self._ports[name] = usual if usual and self._usual_ports and is_free(usual) else lasting_port()
            self._save()
        return self._ports[name]

    def ports(self, new: dict[str, int]) -> dict[str, int]:
        """Return the noted ports of several servers; those that are not noted become the given ones."""
        if new.keys() - self._ports.keys():
            self._ports = {**new, **self._ports}
            self._save()
        return {name: self._ports[name] for name in new}

    def secret(self, name: str) -> str:
        """Return a secret of 64 hexadecimal digits, the same one each time."""
        if name not in self._secrets:
            self._secrets[name] = secrets.token_hex(32)
            self._save()
        return self._secrets[name]

    def _save(self) -> None:
        write_private(self._file, json.dumps({"ports": self._ports, "secrets": self._secrets}, indent=1))
