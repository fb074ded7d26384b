"""What is known of a run?"""

import dataclasses
from typing import Any

from sparsecod_jax import config
from sparsecod_jax.files import read_record
from sparsecod_jax.rundir import RunDir


@dataclasses.dataclass(frozen=True)
class RunData:
    """What a report needs of one run."""

    name: str
    status: str
    config: dict[str, Any]
    lines: list[dict[str, Any]]  # metrics.jsonl
    final: dict[str, Any] | None
    scores: dict[str, Any] | None = None  # analysis/scores.json


def load_run(run: RunDir, name: str | None = None) -> RunData:
    """Reads what a run has written so far; its name is that of its folder unless one is given."""
    return RunData(
        name=name or run.path.name,
        status=run.read_status(),
        config=config.to_dict(config.from_dict(read_record(run.config))),
        lines=run.read_metrics(),
        final=read_record(run.final) if run.final.exists() else None,
        scores=read_record(run.analysis.scores) if run.analysis.scores.exists() else None,
    )
