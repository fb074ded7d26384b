"""What of a source is not learned from, and why?"""

import dataclasses
from typing import Any

from sparsecod_jax.shell.shown import shown

EXAMPLES = 5  # that are kept of each reason
REASONS = 50  # that are told apart, as names of splits are part of some


@dataclasses.dataclass
class LeftOut:
    """By reason: how often, and the first few."""

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, reason: str, example: object) -> None:
        reason = shown(reason, 100)
        if reason not in self.counts and len(self.counts) >= REASONS:
            reason = "for further reasons"
        self.counts[reason] = self.counts.get(reason, 0) + 1
        kept = self.examples.setdefault(reason, [])
        if len(kept) < EXAMPLES:
            kept.append(shown(example, 200))

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            reason: {"count": count, "examples": self.examples[reason]}
            for reason, count in self.counts.items()
        }

    def lines(self) -> list[str]:
        """For people, a line a reason."""
        described = []
        for reason, count in self.counts.items():
            named = [example for example in self.examples[reason] if example]
            more = ["..."] if named and count > len(named) else []
            described.append(
                f"left out: {count:,} {reason}"
                + ": " * bool(named)
                + ", ".join([*named, *more])
            )
        return described
