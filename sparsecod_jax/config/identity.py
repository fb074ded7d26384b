"""Which runs are the same run?

Identity: a hash of everything in a config that decides a run's numbers.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from sparsecod_jax.config import Experiment, flatten, to_dict

OUTSIDE = ("mesh", "execution", "evaluation", "checkpoint", "log")
RECIPE = ("path", "source", "tokenizer")  # where data lies, and how it was made


def identity_fields(experiment: Experiment, data_fingerprint: str) -> dict[str, Any]:
    """What decides the numbers of a run, by dotted names.

    Where its data lies does not; the fingerprint of the data's content does.
    """
    values = to_dict(experiment)
    for section in OUTSIDE:
        del values[section]
    for name in RECIPE:
        del values["data"][name]
    values["data"]["fingerprint"] = data_fingerprint
    unchanged = set(_added_at_default(experiment))
    flat = flatten(values)
    return {name: value for name, value in flat.items() if name not in unchanged}


def _added_at_default(section: Any, where: str = "") -> Iterator[str]:
    """Dotted names of fields that earlier versions had not, where they change nothing."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _added_at_default(value, f"{where}{field.name}.")
        elif "added" in field.metadata and value == field.default:
            yield where + field.name


def identity(fields: dict[str, Any]) -> str:
    """A short hash of `identity_fields`."""
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
