"""What of a source is not learned from, and why?

Omissions: counted by reason, with a few examples, for the manifest and for people.
"""

import dataclasses
from typing import Any

from sparsecod_jax.shell.shown import shown

EXAMPLES = 5  # kept for each reason
REASONS = 50  # told apart, as some contain the name of a split


@dataclasses.dataclass
class LeftOut:
    """What was left out, by reason.

    Attributes:
      counts: how often.
      examples: the first few.
    """

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, reason: str, example: object) -> None:
        """Counts one more.

        Args:
          reason: in the plural, such as "hidden files".
          example: the name of what is left out, or its beginning; empty if it has none.
        """
        reason = shown(reason, 100)
        # A hostile source may have any number of splits.
        if reason not in self.counts and len(self.counts) >= REASONS:
            reason = "for further reasons"
        self.counts[reason] = self.counts.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(shown(example, 200))

    def record(self) -> dict[str, Any]:
        """Count and examples by reason, for the manifest."""
        return {
            reason: {"count": count, "examples": self.examples[reason]}
            for reason, count in self.counts.items()
        }

    def lines(self) -> list[str]:
        """One line per reason, for people."""
        return [self._line(reason) for reason in self.counts]

    def _line(self, reason: str) -> str:
        """Such as "left out: 7 hidden files: .a, .b, .c, .d, .e, ...".

        The colon is missing where no example has a name, as for empty documents.
        """
        count = self.counts[reason]
        line = f"left out: {count:,} {reason}"
        examples = [example for example in self.examples[reason] if example]
        if not examples:
            return line
        if count > len(examples):
            examples.append("...")
        return f"{line}: {', '.join(examples)}"
