"""Which runs are the same run?

Identity: a hash of everything in a config that decides a run's numbers.
"""

import hashlib
import json
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
    return flatten(values)


def identity(fields: dict[str, Any]) -> str:
    """A short hash of `identity_fields`."""
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
