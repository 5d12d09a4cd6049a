"""The images of `infra/Dockerfile`, and the two programs in them."""

import http.server
import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline import ALLOCATOR
from tests.conftest import ROOT
from tests.infra.dockerfile import FILE, commands, lineage, read_stages
from tests.infra.engine import Engine

STAGES = read_stages()
TARGETS = ("pipeline", "mlflow", "s3")
IMAGES = ROOT / "infra" / "images"
EXTRAS = "serve onnx"


def pinned() -> set[str]:
    """Return the names of the packages that constraints.txt pins."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}


@pytest.mark.parametrize("target", TARGETS)
def test_a_container_runs_as_a_numbered_user_with_a_health_check(target: str) -> None:
    stages = lineage(STAGES, target)
    user = next(stage.arguments("USER")[-1] for stage in stages if stage.arguments("USER"))
    assert user == "1000:1000"
    assert any(stage.arguments("HEALTHCHECK") for stage in stages)
    assert any('["tini", "--", "with-secrets"]' in stage.arguments("ENTRYPOINT") for stage in stages)
    assert STAGES[target].arguments("CMD")[0].startswith("["), "a shell would not pass signals on"


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_holds_no_part_of_the_build_but_its_environment(target: str) -> None:
    copied = [copy.split() for stage in lineage(STAGES, target) for copy in stage.arguments("COPY")]
    assert [words[1:] for words in copied if words[0].startswith("--from")] == [["/opt/venv", "/opt/venv"]]
    assert {stage.base for stage in lineage(STAGES, target)} - STAGES.keys() == {"${BASE}"}


@pytest.mark.parametrize("file", [FILE, ROOT / "infra" / "head"])
def test_workers_on_other_nodes_allocate_memory_as_those_of_one_machine_do(file: Path) -> None:
    text = file.read_text()
    assert all(f"{name}={value}" in text for name, value in ALLOCATOR.items())


def test_every_installation_of_packages_is_pinned() -> None:
    found = [words for stage in STAGES.values() for words in commands(stage) if "pip" in words and "install" in words]
    assert len(found) >= 6
    for words in found:
        constrained = words[words.index("install") + 1 :][:2] == ["-c", "constraints.txt"]
        exact = "--no-deps" in words and ("." in words or any(word.startswith("torch==$version") for word in words))
        assert constrained or exact, words


def test_constraints_pin_what_the_images_ask_for(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    script = next(
        words[words.index("-c") + 1]
        for words in commands(STAGES["pipeline-builder"])
        if any("tomllib" in word for word in words)
    )
    done = subprocess.run(
        [sys.executable, "-c", script.replace("$EXTRAS", EXTRAS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {canonicalize_name(Requirement(line).name) for line in done.stdout.splitlines()}
    assert {"torch", "ray", "mlflow", "fastapi", "onnx"} <= names
    auth = [Requirement(text) for text in importlib.metadata.requires("mlflow") or ()]
    names |= {canonicalize_name(one.name) for one in auth if one.marker and one.marker.evaluate({"extra": "auth"})}
    assert names - pinned() == set(), "not in constraints.txt"


def test_the_build_sees_what_it_copies_and_nothing_private() -> None:
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for stage in STAGES.values():
        for copy in stage.arguments("COPY"):
            if not copy.startswith("--from"):
                for source in copy.split()[:-1]:
                    assert (ROOT / source).exists(), source
                    assert any(source == path or source.startswith(f"{path}/") for path in allowed), source
    assert not {"infra", "infra/secrets", ".git", "runs"} & set(allowed)
    for file in (".gitignore", ".rayignore"):
        assert "infra/secrets/" in (ROOT / file).read_text().splitlines(), file


@pytest.mark.parametrize("name", ["with-secrets", "healthy"])
def test_programs_of_the_images_can_be_run(name: str) -> None:
    assert (IMAGES / name).stat().st_mode & 0o555 == 0o555


def run_with_secrets(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the images do, with the secrets of a folder."""
    environment = {"PATH": "/usr/bin:/bin", "SECRETS_FOLDER": str(folder)}
    return subprocess.run(
        [IMAGES / "with-secrets", *command], env=environment, capture_output=True, text=True, check=False
    )


def test_secrets_become_variables_of_the_command_alone(tmp_path: Path) -> None:
    (tmp_path / "PASSWORD").write_text("one two\n$three'\"\n")
    (tmp_path / "token").write_text("a file stays a file")
    script = 'printf "%s|%s|%s" "$PASSWORD" "${token-none}" "$1"; exit 3'
    done = run_with_secrets(tmp_path, "sh", "-c", script, "sh", "a  b")
    assert done.stdout == "one two\n$three'\"|none|a  b"
    assert done.returncode == 3
    assert done.stderr == ""


def test_without_secrets_the_command_runs_unchanged(tmp_path: Path) -> None:
    done = run_with_secrets(tmp_path / "none", "env")
    assert done.returncode == 0
    assert "PASSWORD" not in done.stdout


class Health(http.server.BaseHTTPRequestHandler):
    """Answers 200 at /healthz and 503 elsewhere."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """Serve `Health`, and return its address."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_address[1]}"
    made.shutdown()
    made.server_close()


def test_a_container_is_healthy_if_its_server_answers(server: str) -> None:
    def check(url: str) -> int:
        proxied = {"http_proxy": "http://127.0.0.1:1", "SR_HEALTH_URL": url}
        return subprocess.run(
            [sys.executable, IMAGES / "healthy"], env=proxied, capture_output=True, check=False
        ).returncode

    assert check(f"{server}/healthz") == 0
    assert check(f"{server}/other") == 1
    assert check("http://127.0.0.1:1/healthz") == 1
    assert check("") == 0, "a container without a server"


@pytest.mark.parametrize(
    ("tool", "files"), [("hadolint", [FILE]), ("shellcheck", [IMAGES / "with-secrets"])], ids=["hadolint", "shellcheck"]
)
def test_linters_find_nothing(tool: str, files: list[Path]) -> None:
    program = Path(sysconfig.get_path("scripts"), tool)  # both are packages of Python
    done = subprocess.run([program, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_built_and_works_with_a_read_only_root(
    engine: Engine, build_arguments: dict[str, str], target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = f"localhost/sr-test-{target}"
    engine.build(target, image, build_arguments)
    program = {
        "pipeline": "ray --version && python -m pipeline && sr-upscale --help && bash --version",
        "mlflow": "mlflow --version",
        "s3": "weed version",
    }
    script = f"id -u && {program[target]} && ! touch /opt/venv/file 2>&1 && touch /tmp/x /home/sr/x"
    run = ["run", "--rm", "--read-only", "--cap-drop=ALL", "--tmpfs=/tmp", "--volume=/home/sr", image]
    done = engine.run(*run, "sh", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0] == "1000"
    base, whole = engine.size_mb(build_arguments["BASE"]), engine.size_mb(image)
    with capsys.disabled():
        print(f"\n{target}: {whole:.0f} MB, of which the base image {build_arguments['BASE']} has {base:.0f} MB")
