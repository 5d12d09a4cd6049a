"""Score models that a person names, side by side: networks, bicubic interpolation, and images of other tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline import storage, terminal
from pipeline.data import benchmark_sets, sources
from pipeline.data.left_out import count
from pipeline.data.listing import Listing
from pipeline.evaluation import methods
from pipeline.evaluation.measuring import Evaluation, list_images, score_images
from pipeline.evaluation.methods import Method
from pipeline.evaluation.results import match_results
from pipeline.evaluation.sampled import Drawing, Series, describe
from pipeline.evaluation.scores import BICUBIC, Scores, read_scores
from pipeline.networks.loading import load_upscaler
from pipeline.networks.sources import ModelKind, ModelSource, find_model
from pipeline.networks.upscalers import refuse_ensemble
from pipeline.settings import Config, UserError
from pipeline.settings.evaluation import split_name
from pipeline.storage import printable, redact
from sr_model.networks.sampling import Sampling

_RESERVED = ("hr", "lr")
"""Names of the versions of an image that no model may have."""

_NAMED = 5
"""Names of left-out files that a line lists."""


@dataclass(frozen=True)
class Candidate:
    """A model to score, or images that another tool has enlarged."""

    label: str
    """Its name in tables, unless another candidate has the same."""
    text: str
    """The candidate as the person named it."""
    source: ModelSource | Listing
    sampling: Sampling | None = None
    """How a network that draws images in steps does so; None for its own number of steps."""
    series: str = ""
    """Label of the network without its sampling."""

    @property
    def is_network(self) -> bool:
        """True for a model with weights."""
        return isinstance(self.source, ModelSource) and self.source.kind is not ModelKind.BICUBIC


@dataclass(frozen=True)
class ModelScores:
    """The result of an evaluation of models."""

    folder: str
    """Path or URL of the folder with scores.json and the shown images."""
    scores: Scores
    remarks: list[str]
    """Sentences that belong below the table of scores, such as warnings."""


def evaluate_models(
    config: Config,
    texts: Sequence[str],
    self_ensemble: bool = False,
    folder: str | None = None,
    drawing: Drawing = Drawing(),  # noqa: B008 (it cannot be changed)
    consistent: bool = False,
) -> ModelScores:
    """Score models on the configured benchmark sets, beside bicubic, or read the scores if they were measured before.

    Args:
        config: names the sets. Its scale counts only if no network says another.
        texts: the models, each perhaps as NAME=MODEL. A model is what `find_model` finds, or a folder or archive of
            images that another tool has enlarged.
        self_ensemble: enlarge every image in eight orientations with each network.
        folder: path or URL to write to; by default a folder of its own below `evaluations` in the home.
        drawing: the numbers of steps, and the seeds, with which each model that draws images in steps is scored.
        consistent: correct the images of each network so that, reduced, they are nearly the LR image.

    Raises:
        UserError: if a model, a set or an image cannot be used, the models have different scales, none of them has the
            steps that were asked for, or one draws images in steps and `self_ensemble` is given.
    """
    with terminal.stage("", "looking for models and images"):
        found = [find_candidate(text, config) for text in dict.fromkeys(texts)]
        loaded = _look_at_networks(config, found)
        if self_ensemble:
            refuse_ensemble(any(network.samples for network in loaded.values()))
        config = config.model_copy(update={"scale": _common_scale(config, loaded)})
        drawn = _with_samplings(found, loaded, drawing) if drawing.is_chosen else found
        candidates = _distinct([_marked(candidate, self_ensemble, consistent) for candidate in drawn])
    for name, place in config.evaluate.benchmarks.items():
        print(benchmark_sets.list_set(name, place, config.scale, config.downloads).summary(), flush=True)
    images = list_images(config)
    problems: list[str] = []
    ways, names = [methods.bicubic(config.scale)], [BICUBIC]
    for candidate in candidates:
        source = candidate.source
        if isinstance(source, Listing):
            matched = match_results(candidate.label, source, images, config.evaluate.degradation.label)
            images, problems = matched.images, [*problems, *matched.problems]
            if matched.unused:
                named = printable(", ".join(matched.unused[:_NAMED])) + (", …" if len(matched.unused) > _NAMED else "")
                print(f"{candidate.label}: {count(len(matched.unused), 'file')} left out, of no image ({named})")
        elif source.kind is ModelKind.BICUBIC:
            continue
        else:
            content = methods.sha256(source.weights)
            sampling = candidate.sampling
            ways.append(Method(candidate.label, config.scale, source, content, self_ensemble, sampling, consistent))
        names.append(candidate.label)
    evaluation = Evaluation(config.scale, images, ways, names, show_lr=True)
    identity = evaluation.identify(config)
    folder = folder or f"{config.outputs}/evaluations/{identity}"
    scores = read_scores(folder, identity) or score_images(config, evaluation, folder, "evaluate")
    remarks = describe(_series(candidates), scores)
    return ModelScores(folder, replace(scores, problems=[*problems, *scores.problems]), remarks)


def find_candidate(text: str, config: Config) -> Candidate:
    """Find a model, or a folder or archive of enlarged images.

    Raises:
        UserError: if the text names neither.
    """
    label, named = split_name(text)
    try:
        source: ModelSource | Listing = find_model(named, config)
    except UserError as error:
        listing = _list_results(named, config)
        if listing is None:
            raise
        if not listing.images:
            raise UserError(f"{error}; it holds no images that another tool has enlarged, either") from None
        source = listing
    return Candidate(label or label_of(named), named, source)


def _list_results(place: str, config: Config) -> Listing | None:
    """List the images at a place; None if it is no place."""
    if place.startswith(("models:/", "runs:/")):
        return None
    try:
        return sources.list_source(place, config.downloads)
    except (UserError, OSError):
        return None


def label_of(text: str) -> str:
    """Return a short name for a model: the name of its file, or of the folder that holds model.safetensors."""
    if text.startswith("models:/"):
        return text.removeprefix("models:/").replace("/", "-v")
    if text.startswith("runs:/"):
        return f"run {text.removeprefix('runs:/').partition('/')[0][:8]}"
    plain = redact(text).partition("?")[0] if storage.is_url(text) else text  # a query may have a signature
    path = PurePosixPath(plain.rstrip("/"))
    if path.suffix in (".safetensors", ".onnx"):
        path = path.parent if path.stem == "model" and path.parent.name else path.with_suffix("")
    return path.name or plain


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Number the labels that several candidates share, or that mean something else."""
    taken: set[str] = {BICUBIC, *_RESERVED}
    named = []
    for candidate in candidates:
        label, number = printable(candidate.label), 2
        if not (isinstance(candidate.source, ModelSource) and candidate.source.kind is ModelKind.BICUBIC):
            while storage.plain_name(label).lower() in taken:
                label, number = f"{printable(candidate.label)} ({number})", number + 1
            taken.add(storage.plain_name(label).lower())
        named.append(replace(candidate, label=label))
    return named


def _marked(candidate: Candidate, self_ensemble: bool, consistent: bool) -> Candidate:
    """Mark the label of a network with what is done beside enlarging images once."""
    marks = [*(["x8"] if self_ensemble else []), *(["consistent"] if consistent else [])]
    if not marks or not candidate.is_network:
        return candidate
    return replace(candidate, label=f"{candidate.label} ({', '.join(marks)})")


@dataclass(frozen=True)
class _Network:
    """The facts about a network that its weights say."""

    label: str
    scale: int
    samples: bool


def _look_at_networks(config: Config, candidates: Sequence[Candidate]) -> dict[str, _Network]:
    """Load each network once to check it, and return the facts about it by its text."""
    facts = {}
    for candidate in candidates:
        if candidate.is_network:
            assert isinstance(candidate.source, ModelSource)
            upscaler = load_upscaler(candidate.source, config.scale, "cpu", precision="fp32")
            facts[candidate.text] = _Network(candidate.label, upscaler.scale, upscaler.samples)
    return facts


def _common_scale(config: Config, networks: Mapping[str, _Network]) -> int:
    """Return the scale of all networks; without networks, the configured one."""
    scales = {network.label: network.scale for network in networks.values()}
    if len(set(scales.values())) > 1:
        found = ", ".join(f"{label} enlarges {scale} times" for label, scale in scales.items())
        raise UserError(f"the models have different scales ({found}): expected models of one scale in one table")
    return next(iter(scales.values()), config.scale)


def _with_samplings(
    candidates: Sequence[Candidate], networks: Mapping[str, _Network], drawing: Drawing
) -> list[Candidate]:
    """Replace each network that draws images in steps by one candidate for each number of steps and each seed."""
    if not any(network.samples for network in networks.values()):
        raise UserError(
            "none of the models draws images in steps: expected one that was trained with train.method=flow, or none "
            "of --steps, --seeds and --solver"
        )
    drawn = []
    for candidate in candidates:
        if candidate.text in networks and networks[candidate.text].samples:
            for sampling in drawing.samplings():
                label = drawing.label(candidate.label, sampling)
                drawn.append(replace(candidate, label=label, series=candidate.label, sampling=sampling))
        else:
            drawn.append(candidate)
    return drawn


def _series(candidates: Sequence[Candidate]) -> list[Series]:
    """Group the candidates that are one model with several samplings."""
    found: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        if candidate.sampling:
            found.setdefault((candidate.text, candidate.series), []).append(candidate)
    return [
        Series(same[0].series, tuple((one.sampling, one.label) for one in same if one.sampling))
        for same in found.values()
    ]
