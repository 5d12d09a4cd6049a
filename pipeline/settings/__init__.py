"""Every setting of the pipeline, and the command line that sets them."""

from pipeline.settings.data import Data, Degradation, Preprocess
from pipeline.settings.environment import Cluster, Tracking
from pipeline.settings.errors import UserError
from pipeline.settings.evaluation import Evaluate
from pipeline.settings.grid import Tune
from pipeline.settings.mistakes import explain
from pipeline.settings.network import Model, architecture, default_model
from pipeline.settings.overrides import with_values
from pipeline.settings.places import resolve
from pipeline.settings.schema import Config
from pipeline.settings.training import Train

__all__ = [
    "Cluster",
    "Config",
    "Data",
    "Degradation",
    "Evaluate",
    "Model",
    "Preprocess",
    "Tracking",
    "Train",
    "Tune",
    "UserError",
    "architecture",
    "default_model",
    "explain",
    "resolve",
    "with_values",
]
