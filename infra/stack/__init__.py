"""The stack of infra/compose.yaml as processes of one machine, on the loopback interface; `infra/local` starts it."""

from infra.stack.databases import PostgreSQL
from infra.stack.mlflow_server import Login, MLflowServer
from infra.stack.monitoring import Prometheus
from infra.stack.processes import ServerError, free_port
from infra.stack.ray_nodes import RayNode
from infra.stack.s3 import S3Server
from infra.stack.stack import BUCKET, Services, Stack

__all__ = [
    "BUCKET",
    "Login",
    "MLflowServer",
    "PostgreSQL",
    "Prometheus",
    "RayNode",
    "S3Server",
    "ServerError",
    "Services",
    "Stack",
    "free_port",
]
