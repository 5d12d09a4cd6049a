"""A folder for the Hugging Face Hub: config.json, model.safetensors and README.md, the model card."""

from __future__ import annotations

import json

import yaml

from pipeline import storage
from pipeline.exporting.request import Request
from pipeline.exporting.safetensors import IMPLEMENTATION, write_weights
from pipeline.networks.weights import contiguous
from pipeline.settings import UserError

_FILES = ("README.md", "config.json", "model.safetensors")
_CARD = """\
---
{front}---

# {title}

{description}This {network} enlarges RGB images {scale} times. `model.safetensors` holds its weights, {precision}, and
`config.json` its settings. Input and output are arrays (batch, 3, height, width) with values in [0, 1].

```
python -m pipeline.upscale photo.jpg out.png --model FOLDER
```

FOLDER is the folder of these files. The weights alone also tell the network and its scale.
"""


def write(request: Request) -> str:
    """Write the three files into a folder. A card that lies beside the exported weights is taken over.

    Raises:
        UserError: if the folder has one of these files from elsewhere.
    """
    folder = request.out.rstrip("/")
    _check(folder)
    config = {
        "model_type": request.architecture.name,
        "architectures": [request.architecture.title],
        "library_name": IMPLEMENTATION,
        "scale": request.net.scale,
        "torch_dtype": "float16" if request.precision == "fp16" else "float32",
        **request.settings.model_dump(mode="json", exclude={"name", *request.settings.not_in_weights}),
    }
    card = _card(request)
    write_weights(request, f"{folder}/model.safetensors", contiguous(request.net), request.architecture.name)
    storage.write(f"{folder}/config.json", (json.dumps(config, indent=2) + "\n").encode())
    storage.write(f"{folder}/README.md", card)
    return f"{folder}: config.json, model.safetensors and README.md of {request.title}, {request.precision}"


def _check(folder: str) -> None:
    """Refuse to replace files that no earlier export wrote."""
    found = [name for name in _FILES if storage.exists(f"{folder}/{name}")]
    if found and not _is_export(storage.read(f"{folder}/config.json")):
        raise UserError(
            f"{folder}/{found[0]} exists and belongs to no earlier export, expected a new folder or that of an export"
        )


def _is_export(config: bytes | None) -> bool:
    """Tell whether the content of a config.json says that this program wrote it."""
    try:
        values = json.loads(config or b"")
    except ValueError:
        return False
    return isinstance(values, dict) and bool(values.get("library_name") == IMPLEMENTATION)


def _card(request: Request) -> bytes:
    """Return the card beside the weights, or a short one."""
    own = storage.read(f"{request.weights.rpartition('/')[0]}/README.md") if "/" in request.weights else None
    about = request.about
    if own is not None and own.startswith(b"---\n") and about == type(about)():
        return own
    front = {
        "license": about.license.lower() or None,
        "library_name": "pytorch",
        "pipeline_tag": "image-to-image",
        "tags": ["super-resolution", request.architecture.name, *about.tags],
    }
    text = _CARD.format(
        front=yaml.safe_dump({key: value for key, value in front.items() if value}, sort_keys=False),
        title=request.title,
        description=f"{about.description}\n\n" if about.description else "",
        network=request.architecture.title,
        scale=request.net.scale,
        precision=request.precision,
    )
    if about.author:
        text += f"\nAuthor: {about.author}\n"
    return text.encode()
