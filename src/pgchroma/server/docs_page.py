"""The description of the API as one self-contained HTML page: no script, no font, nothing from elsewhere."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]

CONTENT_TYPE = b"text/html; charset=utf-8"
_TEMPLATE = Path(__file__).with_name("docs.html.j2")


def render(description: Json) -> str:
    """Return the page of an OpenAPI document."""
    # Imported at the first page asked for: few workers ever are.
    import jinja2
    import markupsafe

    def marked(text: str) -> markupsafe.Markup:
        """Return a text with what stands between backquotes as code."""
        pieces = text.split("`")
        shown = [
            markupsafe.Markup("<code>{}</code>").format(piece) if number % 2 else markupsafe.escape(piece)
            for number, piece in enumerate(pieces)
        ]
        return markupsafe.Markup("").join(shown)

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        api=description,
        operations=functools.partial(_operations, description),
        words=words,
        pretty=lambda value: json.dumps(value, ensure_ascii=False),
        name_of=_name,
        marked=marked,
    )


def _operations(description: Json, tag: str) -> Iterator[tuple[str, str, Json]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            if tag in operation["tags"]:
                yield method.upper(), path, operation


def _name(schema: Json) -> str | None:
    """Return the component that a schema refers to, or None."""
    reference: str | None = schema.get("$ref")
    return reference.rpartition("/")[2] if reference else None


def words(schema: Json) -> str:
    """Return a schema in a few words, such as `list of (string or null)`."""
    name = _name(schema)
    if name is not None:
        return name
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(words, schema["anyOf"])))
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        inner = words(schema.get("items", {}))
        return f"list of ({inner})" if " " in inner else f"list of {inner}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of ({words(schema['additionalProperties'])})"
    if kind == "string" and "contentEncoding" in schema:
        return str(schema["contentEncoding"])
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)
