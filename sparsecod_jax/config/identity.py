"""Which runs are the same run?"""

import hashlib
import json
from typing import Any

from sparsecod_jax.config import Experiment, flatten, to_dict


def identity_fields(experiment: Experiment, data_fingerprint: str) -> dict[str, Any]:
    """What makes two runs the same run: everything that decides the numbers. Where the data lies does not; its content does."""
    values = to_dict(experiment)
    for outside in ("mesh", "execution", "evaluation", "checkpoint", "log"):
        del values[outside]
    for recipe in ("path", "source", "tokenizer"):
        del values["data"][recipe]
    values["data"]["fingerprint"] = data_fingerprint
    return flatten(values)


def identity(fields: dict[str, Any]) -> str:
    """A short hash of `identity_fields`."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
