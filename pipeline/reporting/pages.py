"""Text made from this package's templates."""

from __future__ import annotations

from typing import Any

import jinja2
import markupsafe

from pipeline.storage import redact


def render(template: str, **values: Any) -> str:
    """Fill in a template of pipeline/reporting/templates.

    Values lose the secrets of their URLs, and are escaped in `.html.j2` templates.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.reporting"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        finalize=_without_secrets,
    )
    return environment.get_template(template).render(**values)


def _without_secrets(value: Any) -> Any:
    return redact(value) if isinstance(value, str) and not isinstance(value, markupsafe.Markup) else value
