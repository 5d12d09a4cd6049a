"""A network namespace for the second node of a stack, joined to this machine by one virtual cable.

Only root may make one. What runs in it reaches this machine through the cable and nothing else, so that a test can cut
the node off or slow its traffic down.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path


class Namespace:
    """A network namespace with its cable.

    Args:
        folder: folder of the stack, from which the names and addresses follow.
    """

    def __init__(self, folder: Path) -> None:
        digest = hashlib.sha256(str(folder).encode()).digest()
        self.name = f"sr-{digest[:4].hex()}"
        self.cable = f"sr{digest[:4].hex()}h"
        """Name of the end of the cable on this machine."""
        self.inner_cable = f"sr{digest[:4].hex()}n"
        """Name of the end of the cable in the namespace."""
        # 198.18.0.0/15 is reserved for tests of networks (RFC 2544), so that no real machine has these addresses.
        net = f"198.{18 + digest[4] % 2}.{digest[5]}"
        first = digest[6] % 64 * 4
        self.outer_address, self.inner_address = f"{net}.{first + 1}", f"{net}.{first + 2}"

    def exists(self) -> bool:
        """Tell whether the namespace exists."""
        return Path("/run/netns", self.name).exists()

    def create(self) -> bool:
        """Create the namespace and its cable if they do not exist; return False if this user may not."""
        if self.exists():
            return True
        if os.name != "posix" or os.geteuid() != 0 or not shutil.which("ip"):
            return False
        inside = ("netns", "exec", self.name, "ip")
        commands = [
            ("netns", "add", self.name),
            ("link", "add", self.cable, "type", "veth", "peer", "name", self.inner_cable, "netns", self.name),
            ("addr", "add", f"{self.outer_address}/30", "dev", self.cable),
            ("link", "set", self.cable, "up"),
            (*inside, "addr", "add", f"{self.inner_address}/30", "dev", self.inner_cable),
            (*inside, "link", "set", self.inner_cable, "up"),
            (*inside, "link", "set", "lo", "up"),
        ]
        for command in commands:
            done = subprocess.run(["ip", *command], capture_output=True, check=False)
            if done.returncode != 0:
                self.remove()
                return False
        return True

    def run_inside(self, argv: list[str]) -> list[str]:
        """Return the command that runs another one in the namespace, in the same process."""
        return ["ip", "netns", "exec", self.name, *argv]

    def remove(self) -> None:
        """Remove the namespace and its cable; processes in it have to end before."""
        if not shutil.which("ip"):
            return  # so `create` has made none
        if self.exists():
            subprocess.run(["ip", "netns", "del", self.name], capture_output=True, check=False)
        # The kernel removes a namespace later than its name, and the cable with it.
        subprocess.run(["ip", "link", "del", self.cable], capture_output=True, check=False)
