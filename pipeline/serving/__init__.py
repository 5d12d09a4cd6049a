"""Serve a model over HTTP: a page for persons, an endpoint for programs, and Ray Serve's replicas behind both."""

from pipeline.serving.listening import listen
from pipeline.serving.options import PRECISIONS, Limits, ServeOptions

__all__ = ["PRECISIONS", "Limits", "ServeOptions", "listen"]
