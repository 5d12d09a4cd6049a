"""Every setting of the pipeline, and how a command line is read."""

from pipeline.settings.data import Data, Degradation, Preprocess
from pipeline.settings.environment import Cluster, Tracking
from pipeline.settings.errors import UserError
from pipeline.settings.evaluation import Evaluate
from pipeline.settings.grid import Tune
from pipeline.settings.network import Model
from pipeline.settings.schema import Config, closest, sentence, with_values
from pipeline.settings.training import Perceptual, Train

__all__ = [
    "Cluster",
    "Config",
    "Data",
    "Degradation",
    "Evaluate",
    "Model",
    "Perceptual",
    "Preprocess",
    "Tracking",
    "Train",
    "Tune",
    "UserError",
    "closest",
    "sentence",
    "with_values",
]
