"""Export a model."""

from __future__ import annotations

from datetime import UTC, datetime

from pipeline.exporting import FORMATS, About, Format, Request
from pipeline.exporting.request import Precision
from pipeline.networks.sources import ModelKind, ModelSource
from pipeline.networks.weights import read_weights
from pipeline.settings import UserError
from sr_model.networks import recognise


def export(source: ModelSource, form: Format, out: str, precision: Precision, about: About) -> str:
    """Write a model in another format.

    Args:
        source: the model.
        form: the format.
        out: path or URL of the file or folder to write.
        precision: numbers of the weights.
        about: what people say about the model.

    Returns:
        A sentence that says what was written.

    Raises:
        UserError: if the model has no weights of this project, or the format cannot hold its network.
    """
    if source.kind is not ModelKind.SAFETENSORS:
        raise UserError(f"{source.text} has no weights of this project, expected a model that was trained with it")
    try:
        architecture, net = recognise(read_weights(source.weights))
    except ValueError as error:
        raise UserError(f"{source.weights} cannot be used: {error}") from None
    if form.networks and architecture.name not in form.networks:
        able = ", ".join(entry.name for entry in FORMATS.values() if not entry.networks)
        raise UserError(
            f"{source.text} is a {architecture.title}, which the format {form.name} cannot hold: expected a network of "
            f"{' or '.join(form.networks)}, or one of the formats {able}"
        )
    _, settings = architecture.infer(net.state_dict())
    today = datetime.now(UTC).date().isoformat()
    return form.write(Request(net, architecture, settings, source.weights, out, precision, about, today))
