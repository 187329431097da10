"""What every page is made of: one file with its styles, its code and BokehJS in it, and nothing that it could load.

The page forbids by its own policy whatever would be loaded, and every script but those it was written with, so that a
name that slipped through could do nothing; names are escaped besides.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from hyperalign.show import words

__all__ = ["as_json", "fill"]


def fill(template: str, code: Sequence[str], **values: Any) -> str:
    """Draw a page.

    Args:
        template: Name of a file in `web/`.
        code: The page's own code: names of files in `web/`, in the order in which they are read.
        values: What the template names.
    """
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_web),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        {name: getattr(words, name) for name in ("clean", "count", "duration", "flops", "points", "size")}
    )
    scripts = [*_bokeh(), _own_code(code)]
    return environment.get_template(template).render(
        **values,
        dash=words.NONE,
        policy=_policy(scripts),
        scripts=[Markup(text) for text in scripts],
        styles=Markup(_web("report.css")),
    )


def as_json(value: object) -> Markup:
    """JSON that cannot end the script element in which it stands."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _web(name: str) -> str:
    """A file of the page as it is written."""
    return resources.files(__package__).joinpath("web", name).read_text("utf-8")


def _own_code(names: Sequence[str]) -> str:
    """The page's own code as one script with a scope of its own."""
    return '(() => {\n"use strict";\n' + "\n".join(_web(f"{name}.js") for name in names) + "\n})();"


def _bokeh() -> list[str]:
    """BokehJS as the installed package brings it."""
    folder = metadata.distribution("bokeh").locate_file("bokeh/server/static/js")
    scripts = [Path(str(folder), f"{name}.min.js").read_text("utf-8") for name in ("bokeh", "bokeh-api")]
    return [script.replace("</script", "<\\/script") for script in scripts]


def _policy(scripts: list[str]) -> str:
    """What the page may do: run these scripts, style itself, show pictures that stand in it; load nothing."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"
