"""An entry for OpenModelDB (https://openmodeldb.info), and the file of weights that it describes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipeline import storage
from pipeline.exporting.rcan import write_rcan
from pipeline.exporting.request import Request
from pipeline.exporting.safetensors import write_weights
from pipeline.networks.weights import contiguous
from pipeline.settings import UserError
from sr_model.networks.edsr import EDSR
from sr_model.networks.settings import EDSRSettings


def write(request: Request) -> str:
    """Write the entry, and the weights beside it: an EDSR as RCAN, others under their own names.

    Raises:
        UserError: if the author is not known, or other weights lie where those of the entry belong.
    """
    about = request.about
    if not about.author:
        raise UserError("OpenModelDB lists every model with its author, expected --author NAME")
    file = f"{request.out.removesuffix('.json')}.safetensors"
    _check(request.out, file)
    if isinstance(request.net, EDSR):
        architecture, content = "rcan", write_rcan(request, file)
    else:
        architecture = request.architecture.name
        content = write_weights(request, file, contiguous(request.net), architecture)
    resource = {
        "platform": "pytorch",
        "type": "safetensors",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "urls": list(about.urls),
    }
    entry: dict[str, Any] = {
        "name": request.title,
        "author": about.author,
        "license": about.license or None,
        "tags": list(about.tags),
        "description": about.description,
        "date": request.date,
        "architecture": architecture,
        "size": _size(request),
        "scale": request.net.scale,
        "inputChannels": 3,
        "outputChannels": 3,
        "resources": [resource],
        "images": [],
    }
    storage.write(request.out, (json.dumps(entry, indent=4, ensure_ascii=False) + "\n").encode())
    return f"{request.out}: the entry, which describes {file}"


def _check(entry: str, file: str) -> None:
    """Refuse to replace weights that an earlier entry does not describe."""
    weights = storage.read(file)
    if weights is not None and hashlib.sha256(weights).hexdigest().encode() not in (storage.read(entry) or b""):
        raise UserError(f"{file} exists and {entry} does not describe it, expected a name that no other weights have")


def _size(request: Request) -> list[str]:
    """Return features and blocks in OpenModelDB's words; an RCAN also has its number of groups."""
    settings = request.settings.model_dump()
    groups = ["1nrg"] if isinstance(request.settings, EDSRSettings) else []
    blocks = "nrb" if groups else "nb"
    known = [f"{settings[key]}{word}" for key, word in (("channels", "nf"), ("blocks", blocks)) if key in settings]
    return [*known[:1], *groups, *known[1:]]
