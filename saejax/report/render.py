"""Templates filled into one HTML file that opens without a network: style and drawing script stand in it."""

import importlib.resources
from pathlib import Path
from typing import Any

from saejax import artifacts


def write_page(out: Path, template: str, **values: Any) -> Path:
    """Fill a template of this folder and write the page.

    Args:
        out: the HTML file; its folder is created when absent.
        template: name of the template.
        values: what it shows.

    Returns:
        The file.
    """
    import jinja2
    import markupsafe
    import plotly.offline

    files = importlib.resources.files("saejax.report")
    loader = jinja2.FunctionLoader(lambda name: (files / name).read_text())
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    safe = {"style": (files / "page.css").read_text(), "plotly": plotly.offline.get_plotlyjs()}
    page = environment.get_template(template).render(
        **values, **{name: markupsafe.Markup(text) for name, text in safe.items()}
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_bytes(out, page.encode())
    return out
