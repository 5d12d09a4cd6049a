"""Text made from this package's templates."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

import jinja2
import markupsafe

from pipeline.storage import redact


def render(template: str, **values: Any) -> str:
    """Fill in a template of pipeline/reporting/templates.

    Values lose the secrets of their URLs, and are escaped in `.html.j2` templates. In these, a content security policy
    allows the page's own style and script, and images that are part of the page. A browser then runs and loads nothing
    else, even if a value was not escaped. Drawings have to be images (`data_url`), because they have styles of their
    own.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.reporting"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        finalize=_without_secrets,
    )
    environment.filters["data_url"] = _data_url
    if template.endswith(".html.j2"):
        style, script = _read("page.css"), _read("page.js")
        policy = (
            f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
            "base-uri 'none'; form-action 'none'"
        )
        values |= {"style": style, "script": script, "policy": markupsafe.Markup(policy)}  # noqa: S704
    return environment.get_template(template).render(**values)


def _without_secrets(value: Any) -> Any:
    return redact(value) if isinstance(value, str) and not isinstance(value, markupsafe.Markup) else value


def _data_url(svg: str) -> str:
    """Return the URL of an SVG drawing that is part of the page; a browser runs no script in it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _read(name: str) -> markupsafe.Markup:
    return markupsafe.Markup((resources.files(__package__) / "templates" / name).read_text("utf-8"))  # noqa: S704


def _source(content: str) -> str:
    """Name a style or script in a content security policy by its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
