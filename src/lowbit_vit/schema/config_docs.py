"""Print a profile so that a person can read it: resolved values, each with its meaning, and what is ours marked as ours."""

from collections.abc import Iterator

from pydantic import BaseModel

from lowbit_vit.schema.config import Profile


def explain(profile: Profile) -> str:
    """The profile as YAML with a comment behind every value that has a description; it loads back to an equal profile."""
    return "\n".join(_lines(profile, indent=0)) + "\n"


def _lines(model: BaseModel, *, indent: int) -> Iterator[str]:
    for key, field in type(model).model_fields.items():
        value = getattr(model, key)
        comment = f"  # {field.description}" if field.description else ""
        yield from _entry(f"{key}:", value, comment=comment, indent=indent)


def _entry(prefix: str, value: object, *, comment: str, indent: int) -> Iterator[str]:
    space = " " * indent
    if isinstance(value, BaseModel):
        yield f"{space}{prefix}{comment}"
        yield from _lines(value, indent=indent + 2)
    elif isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
        yield f"{space}{prefix}{comment}"
        for item in value:
            yield f"{space}- {_flow(item)}"
    else:
        yield f"{space}{prefix} {_flow(value)}{comment}"


def _flow(value: object) -> str:
    """One-line YAML. JSON's scalars and strings are YAML's."""
    if isinstance(value, BaseModel):
        return "{" + ", ".join(f"{key}: {_flow(getattr(value, key))}" for key in type(value).model_fields) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
