"""How are the results of `eval` shown?

Results table: every metric of every task, for people, and what to know about it.
"""

from typing import Any

Results = dict[str, Any]
Row = tuple[str, ...]  # cells

HEADINGS = ("task", "questions", "examples", "metric", "value", "error")


def describe(results: Results) -> str:
    """The results as text.

    A table of every metric, the average, and what was different from the usual task:

      task      questions  examples  metric    value   error
      arc_easy  570        0         acc       0.4123  0.0206
      arc_easy  570        0         acc_norm  0.3877  0.0204
      average 0.3877 of arc_easy acc_norm
      arc_easy was scored on validation, as ai2_arc/ARC-Easy has no test

    Args:
      results: as `evaluate` writes them.
    """
    rows = [HEADINGS, *_rows(results)]
    notes = [*_average(results["average"]), *_splits(results["data"])]
    if results["truncated"]:
        notes.append(
            f"{results['truncated']} texts are longer than"
            f" {results['model']['max_length']} tokens and lost their beginning"
        )
    return "\n".join([*_aligned(rows), *notes])


def _rows(results: Results) -> list[Row]:
    """One row per task or group and metric, with its standard error."""
    rows = []
    for name, result in results["results"].items():
        questions = results["n-samples"].get(name, {}).get("effective", "")
        examples = results["n-shot"].get(name, "")
        for key, value in result.items():
            # Metrics are named METRIC,FILTER; other entries are names and aliases.
            metric, comma, variant = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = result.get(f"{metric}_stderr,{variant}")
            numbers = (_four_digits(value), _four_digits(error))
            rows.append((name, str(questions), str(examples), metric, *numbers))
    return rows


def _aligned(rows: list[Row]) -> list[str]:
    """Lines in which the cells of a column begin below one another."""
    # Each column is as wide as its longest cell.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _average(average: dict[str, Any]) -> list[str]:
    """A line with the average and what it is made of; none without accuracies."""
    if average["value"] is None:
        return []
    counted = []
    for name, task in average["tasks"].items():
        counted.append(f"{name} {task['metric']}")
    return [f"average {average['value']:.4f} of {', '.join(counted)}"]


def _splits(data: dict[str, dict[str, str]]) -> list[str]:
    """A sentence for each task that was scored on another split than usual."""
    sentences = []
    for task, described in data.items():
        split, usual = described["split"], described["usual_split"]
        if split != usual:
            folder = described["folder"]
            sentences.append(
                f"{task} was scored on {split}, as {folder} has no {usual}"
            )
    return sentences


def _four_digits(value: Any) -> str:
    """Empty for what is not a number, such as a missing standard error."""
    return f"{value:.4f}" if isinstance(value, float) else ""
