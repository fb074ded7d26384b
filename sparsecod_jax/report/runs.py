"""What is known of a run?

Run data: the config, metrics, final result and scores, as far as a run has them.
"""

import dataclasses
import sys
from typing import Any

from sparsecod_jax import config
from sparsecod_jax.config.python_file import gist
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files
from sparsecod_jax.storage.records import read_record
from sparsecod_jax.storage.rundir import RunDir


@dataclasses.dataclass(frozen=True)
class RunData:
    """What a report needs of one run.

    Attributes:
      lines: of metrics.jsonl.
      final: final.json, of a finished run.
      scores: analysis/scores.json, of an analysed run.
    """

    name: str
    status: str
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    final: dict[str, Any] | None
    scores: dict[str, Any] | None = None

    @property
    def is_finished(self) -> bool:
        return self.status == "finished"


def load_run(run: RunDir, name: str | None = None) -> RunData:
    """Reads what a run has written so far.

    Args:
      name: None is the name of its folder.

    Raises:
      ConfigError: it is not a run, or it is damaged.
    """
    if run.metrics.exists():
        files.check_plain(run.metrics)
    if not run.config.exists():
        raise ConfigError(f"{run.path} has no config.json: restore it from a copy")
    described = read_record(run.config)
    if "architectures" in described:
        raise ConfigError(
            f"{run.path} is a Hugging Face model folder, not a run: make one from it with"
            " `sparsecod import`"
        )
    try:
        return RunData(
            name=name or run.path.name,
            status=run.read_status(),
            config=config.to_dict(config.from_dict(described)),
            lines=run.read_metrics(),
            final=read_record(run.final) if run.final.exists() else None,
            scores=_scores(run),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{run.path} is damaged ({gist(error)}): restore it from a copy"
        ) from error


def _scores(run: RunDir) -> dict[str, Any] | None:
    """The scores of a run, without a Jacobian that can't be trusted.

    Earlier versions did not record what computed it, and some compilers were faulty.
    """
    if not run.analysis.scores.exists():
        return None
    scores = read_record(run.analysis.scores)
    if "jacobian" in scores and "computed_with" not in scores:
        reason = (
            "its Jacobian is from an earlier version, perhaps from a faulty compiler,"
            " and is left out"
        )
        command = shown(f"sparsecod analyze --workdir={run.path}")
        print(f"{shown(run.path)}: {reason}: run `{command}`", file=sys.stderr)
        del scores["jacobian"]
    return scores
