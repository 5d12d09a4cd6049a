import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipeline.downloads import download
from pipeline.networks import features
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from tests.pipeline.training.test_learner import make_learner, make_step
from tests.sr_model.terms.test_perceptual import random_weights

WEIGHTS = random_weights("vgg19")


def config(tmp_path: Path, weights: Path | str, *more: str) -> Config:
    chosen = [f"home={tmp_path / 'home'}", f"cache={tmp_path / 'cache'}", f"train.perceptual.weights={weights}"]
    loss = 'train.loss={"perceptual": 1.0, "tv": 0.00055}'
    small = ["model.channels=8", "model.blocks=1", "model.batch_norm=false", "train.precision=fp32"]
    return parse([*chosen, loss, *small, *more], "train", "")


def weights_of(settings: Config) -> str:
    return settings.train.pretrained()["perceptual"].source


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    file = tmp_path / "vgg19.pth"
    torch.save(WEIGHTS, file)
    return file


def test_what_the_layers_need_is_put_into_the_home_and_trains(tmp_path: Path, pth: Path) -> None:
    prepared = features.prepare_terms(config(tmp_path, pth))
    url = Path(weights_of(prepared))
    assert url.parent == tmp_path / "home" / "features"
    assert set(safetensors.torch.load_file(url)) == {
        f"features.{i}.{k}" for i in (0, 2, 5, 7) for k in ("weight", "bias")
    }
    pth.unlink()  # workers need it no more
    learner = make_learner(prepared)
    result = make_step(learner, 0, [8, 8])
    assert result.finite
    assert set(result.sums) - {"objective"} == {"perceptual", "tv"}
    assert result.norms["gradient_norm"] > 1e-3


def test_the_same_weights_in_another_file_are_the_same(tmp_path: Path, pth: Path) -> None:
    (tmp_path / "copy.pth").write_bytes(pth.read_bytes())
    mine, copy = (config(tmp_path, file).train.pretrained()["perceptual"] for file in (pth, tmp_path / "copy.pth"))
    assert features.identify(mine) == features.identify(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected an existing .safetensors or .pth file"),
        (b"no weights", "expected a .safetensors file, or a .pth file that holds nothing but tensors"),
    ],
)
def test_weights_that_cannot_be_used_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "bad.pth"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"train.perceptual.weights is .*bad.pth, {message}"):
        features.prepare_terms(config(tmp_path, file))


def test_code_in_a_file_of_weights_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="holds nothing but tensors"):
        features.prepare_terms(config(tmp_path, tmp_path / "evil.pth"))
    assert not (tmp_path / "touched").exists()


def test_a_compressed_file_of_weights_is_refused(tmp_path: Path, pth: Path) -> None:
    """A few bytes could stand for gigabytes of zeros; torch.save does not compress."""
    small = tmp_path / "small.pth"
    with zipfile.ZipFile(pth) as whole, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as compressed:
        for entry in whole.infolist():
            compressed.writestr(entry.filename, whole.read(entry))
    with pytest.raises(UserError, match=r"small.pth, expected .* holds nothing but tensors \(it is compressed"):
        features.prepare_terms(config(tmp_path, small))


def test_the_published_files_of_the_older_format_are_read(tmp_path: Path, pth: Path) -> None:
    old = tmp_path / "old.pth"
    torch.save(WEIGHTS, old, _use_new_zipfile_serialization=False)
    first, second = (weights_of(features.prepare_terms(config(tmp_path, file))) for file in (pth, old))
    assert Path(first).read_bytes() == Path(second).read_bytes()


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_a_damaged_part_in_the_home_is_made_again(
    tmp_path: Path, pth: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = Path(weights_of(features.prepare_terms(config(tmp_path, pth))))
    whole = stored.read_bytes()
    other = safetensors.torch.save({"features.0.weight": torch.zeros(1)})
    stored.write_bytes(other if content is None else content)
    features.prepare_terms(config(tmp_path, pth))
    assert stored.read_bytes() == whole
    assert f"{stored} is damaged (" in capsys.readouterr().err


def test_weights_that_are_too_shallow_are_refused(tmp_path: Path, pth: Path) -> None:
    file = tmp_path / "shallow.safetensors"
    safetensors.torch.save_file({k: v for k, v in WEIGHTS.items() if k.startswith("features.0.")}, file)
    with pytest.raises(
        UserError, match=r"train.perceptual.weights is .*shallow.*: the weights lack features\.2\.weight"
    ):
        features.prepare_terms(config(tmp_path, file))


@pytest.mark.parametrize(("layer", "network"), [("conv5_4", "vgg16"), ("conv9_1", "vgg19")])
def test_a_layer_that_is_not_there_is_refused_before_anything_starts(
    tmp_path: Path, pth: Path, layer: str, network: str
) -> None:
    with pytest.raises(UserError, match=f"{network} has no layer {layer}"):
        config(tmp_path, pth, f'train.perceptual.layers={{"{layer}": 1}}', f"train.perceptual.network={network}")


@pytest.fixture
def server(pth: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    content = pth.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_the_published_file_is_downloaded_once_and_checked(
    tmp_path: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, pth: Path
) -> None:
    url = f"http://127.0.0.1:{server.server_address[1]}/vgg19.pth"
    digits = features.identify(config(tmp_path, pth).train.pretrained()["perceptual"])[:8]
    monkeypatch.setitem(features.PUBLISHED, "vgg19", (url, "00000000"))
    with pytest.raises(UserError, match="expected one that begins with 00000000"):
        features.prepare_terms(config(tmp_path, "torchvision"))
    monkeypatch.setitem(features.PUBLISHED, "vgg19", (url, digits))
    first = features.prepare_terms(config(tmp_path, "torchvision"))
    server.shutdown()
    assert features.prepare_terms(config(tmp_path, "torchvision")) == first
    assert Path(weights_of(first)).exists()


def test_a_download_that_was_damaged_in_the_cache_is_removed(
    tmp_path: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, pth: Path
) -> None:
    url = f"http://127.0.0.1:{server.server_address[1]}/vgg19.pth"
    digits = features.identify(config(tmp_path, pth).train.pretrained()["perceptual"])[:8]
    monkeypatch.setitem(features.PUBLISHED, "vgg19", (url, digits))
    cached = Path(download.fetch(url, config(tmp_path, "torchvision").downloads))
    cached.write_bytes(bytes(cached.stat().st_size))
    with pytest.raises(UserError, match=r"vgg19.pth was damaged and is removed: rerun the command"):
        features.prepare_terms(config(tmp_path, "torchvision"))
    assert Path(weights_of(features.prepare_terms(config(tmp_path, "torchvision")))).exists()


def test_without_a_network_it_says_what_to_provide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    monkeypatch.setitem(features.PUBLISHED, "vgg19", ("http://127.0.0.1:9/vgg19.pth", "00000000"))
    with pytest.raises(UserError, match=r"expected train\.perceptual\.weights to name a \.safetensors or \.pth file"):
        features.prepare_terms(config(tmp_path, "torchvision"))
