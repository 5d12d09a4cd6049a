"""Text made of this package's templates."""

from __future__ import annotations

from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """A page of pipeline/reporting/templates; what a .html.j2 shows is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.reporting"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)
