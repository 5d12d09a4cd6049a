"""Export a model to another format: `python -m pipeline.export srresnet-x4 --format onnx model.onnx`."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.exporting import FORMATS, About
from pipeline.networks import sources
from pipeline.settings import UserError
from pipeline.settings.command_line import Parser, command


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.export`."""
    parser = Parser("export", "Export a model, so that other programs can use it.")
    parser.add_argument(
        "model",
        help="a bundled model, a .safetensors file, the folder of a training or of a workflow, or models:/NAME@ALIAS "
        "or runs:/ID of MLflow",
    )
    parser.add_argument("out", help="the file to write; a folder for the format huggingface")
    purposes = "; ".join(f"{name}: {form.purpose}" for name, form in FORMATS.items())
    parser.add_argument("--format", required=True, choices=list(FORMATS), help=purposes)
    parser.add_argument(
        "--precision",
        choices=["fp32", "fp16"],
        default="fp32",
        help="number format of the weights (default: %(default)s)",
    )
    parser.add_argument("--title", default="", help="title of the model; by default its network and scale")
    parser.add_argument("--author", default="", help="the person or group that made the model")
    parser.add_argument("--license", default="", help="the license's SPDX identifier, such as Apache-2.0")
    parser.add_argument("--description", default="", help="a few sentences about the model")
    parser.add_argument("--tag", action="append", default=[], help="a keyword; may be repeated")
    parser.add_argument("--url", action="append", default=[], help="address of the weights for downloads (openmodeldb)")
    options = parser.parse_args(argv)
    form = FORMATS[options.format]
    if not options.out.endswith(form.ending):
        raise UserError(f"{options.out} does not end in {form.ending}, expected the name of a {form.ending} file")
    source = sources.find_model(options.model)
    about = About(
        options.title, options.author, options.license, options.description, tuple(options.tag), tuple(options.url)
    )

    from pipeline.exporting.export import export  # after the checks, because imports take seconds

    print(export(source, form, options.out, options.precision, about))


if __name__ == "__main__":
    main()
