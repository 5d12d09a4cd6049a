"""A container engine for tests that build images, and a base image where none can be pulled."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ROOT
from tests.infra.dockerfile import FILE

PULLED = "docker.io/library/python:3.11-slim-bookworm"
"""The base image that the Dockerfile names."""
MADE = "localhost/sr-test-base"
"""A base image that is made from packages of Debian, whose Python is 3.11, too."""
PACKAGES = "python3,python3-venv,python-is-python3,ca-certificates"
MIRROR = "http://deb.debian.org/debian"


@dataclass(frozen=True)
class Engine:
    """Docker or Podman.

    Args:
        program: name of the program.
        environment: its environment.
    """

    program: str
    environment: dict[str, str]
    options: list[str] = field(default_factory=list)
    """Options of every build: this machine's certificates and settings of pip, if it is Podman."""

    def run(self, *arguments: str, timeout: float = 3000) -> subprocess.CompletedProcess[str]:
        """Run a command of the engine, whose output goes to the terminal if it fails."""
        done = subprocess.run(
            [self.program, *arguments], env=self.environment, capture_output=True, text=True, check=False,
            timeout=timeout,
        )  # fmt: skip
        if done.returncode:
            print(done.stdout[-5000:], done.stderr[-5000:], file=sys.stderr)
        return done

    def build(self, target: str, tag: str, arguments: dict[str, str]) -> None:
        """Build a target of the Dockerfile."""
        options = [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
        done = self.run(
            "build", "--file", str(FILE), "--target", target, "--tag", tag, *self.options, *options, str(ROOT)
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def size_mb(self, image: str) -> float:
        """Return the size of an image in MB, unpacked."""
        inspected = self.run("image", "inspect", image)
        return float(json.loads(inspected.stdout)[0]["Size"]) / 1e6


def find_engine(folder: Path) -> Engine | None:
    """Return an engine that can be used here, or None.

    Args:
        folder: folder for its settings.
    """
    if shutil.which("docker") and not subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return Engine("docker", dict(os.environ))
    if not shutil.which("podman"):
        return None
    settings = folder / "containers.conf"
    settings.write_text(_podman_settings())
    environment = {**os.environ, "CONTAINERS_CONF": str(settings)}
    if subprocess.run(["podman", "info"], env=environment, capture_output=True, check=False).returncode:
        return None
    shared = [Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pip.conf")]
    mounts = [f"--volume={file}:{file}:ro" for file in shared if file.exists()]
    # The other format has no health check.
    return Engine("podman", environment, ["--format=docker", "--network=host", *mounts])


def _podman_settings() -> str:
    """Return settings with which Podman also works as root in a container or a small virtual machine."""
    runtime = next((name for name in ("runc", "crun") if shutil.which(name)), "runc")
    files = _most_files()
    has_systemd = Path("/run/systemd/system").is_dir()
    return (
        f'[containers]\ndefault_ulimits = ["nofile={files}:{files}", "nproc=4096:4096"]\n'
        '[network]\nnetwork_backend = "netavark"\n'
        f'[engine]\nruntime = "{runtime}"\nevents_logger = "file"\n'
        f'cgroup_manager = "{"systemd" if has_systemd else "cgroupfs"}"\n'
    )


def _most_files() -> int:
    """Return the number of files that a container may open: a process without the right to do so cannot raise it."""
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65536)


def base_image(engine: Engine) -> str | None:
    """Return the name of a base image: the published one, or one made of Debian's packages; None if neither works."""
    for image in (PULLED, MADE):
        if not engine.run("image", "inspect", image).returncode:
            return image
    if not engine.run("pull", PULLED, timeout=600).returncode:
        return PULLED
    if not shutil.which("debootstrap") or os.geteuid():
        return None
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", f"{folder}/root", MIRROR],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            print(made.stdout[-3000:], file=sys.stderr)
            return None
        shutil.rmtree(f"{folder}/root/var/cache/apt/archives")
        packed = ["tar", "--create", "--file", f"{folder}/root.tar", "--directory", f"{folder}/root", "."]
        subprocess.run(packed, check=True)
        if engine.run("import", f"{folder}/root.tar", MADE).returncode:
            return None
    return MADE


def torch_arguments(folder: Path, engine: Engine) -> dict[str, str]:
    """Return build arguments and add a mount, so that the CPU build of PyTorch comes from where pip finds it here.

    Nothing changes if pip finds none, because then the Dockerfile's own index is the place to look.
    """
    version = next(
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")
    ).partition("==")[2]
    index = folder / "index"
    wheels = index / "torch"
    wheels.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(wheels), f"torch=={version}+cpu"]
    if engine.program != "podman" or subprocess.run(command, capture_output=True, check=False).returncode:
        return {}
    links = "".join(f'<a href="{file.name}">{file.name}</a>\n' for file in wheels.glob("*.whl"))
    (wheels / "index.html").write_text(links)
    engine.options.append(f"--volume={index}:/index:ro")
    return {"CPU_INDEX": "file:///index"}


@contextmanager
def engine_socket(engine: Engine, project: str, folder: Path) -> Iterator[dict[str, str]]:
    """Give the environment in which Docker Compose reaches an engine.

    For Podman, this starts its service, and runs the health checks of a project: it leaves them to timers of systemd,
    which not every machine has.

    Args:
        engine: the engine.
        project: name of the compose project.
        folder: folder for the socket.
    """
    environment = {**engine.environment, "SR_TEST_FILES": str(_most_files())}
    if engine.program != "podman":
        yield environment
        return
    address = f"unix://{folder}/podman.sock"
    service = subprocess.Popen(["podman", "system", "service", "--time=0", address], env=engine.environment)
    ended = threading.Event()

    def check_health() -> None:
        while not ended.wait(5):
            listed = engine.run("ps", "--quiet", f"--filter=label=com.docker.compose.project={project}")
            for container in listed.stdout.split():
                command = ["podman", "healthcheck", "run", container]
                subprocess.run(command, env=engine.environment, capture_output=True, check=False)

    checker = threading.Thread(target=check_health)
    checker.start()
    try:
        yield {**environment, "DOCKER_HOST": address}
    finally:
        ended.set()
        checker.join()
        service.terminate()
        service.wait(30)
