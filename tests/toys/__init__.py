"""A network, a term and a method of training: one file each, and registered here.

They have to be registered before `pipeline.settings` is imported, so tests run this package in a process of its own.
"""

from sr_model.networks import ARCHITECTURES
from sr_model.terms import TERMS
from tests.toys import network, term

ARCHITECTURES["toy"] = network.ARCHITECTURE
TERMS["brightness"] = term.KIND

from pipeline.training.methods import METHODS  # noqa: E402  (imports the settings)
from tests.toys import method  # noqa: E402

METHODS["with_critic"] = method.KIND
