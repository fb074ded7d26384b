"""How are the results of `eval` shown? Tables for people: every metric, and what to know."""

from typing import Any

HEADINGS = ("task", "questions", "examples", "metric", "value", "error")


def describe(results: dict[str, Any]) -> str:
    """A table of every metric, the average, and what was different from the usual task."""
    rows = [HEADINGS, *_rows(results)]
    notes = [*_average(results["average"]), *_splits(results["data"])]
    if results["truncated"]:
        notes.append(
            f"{results['truncated']} texts are longer than"
            f" {results['model']['max_length']} tokens and lost their beginning"
        )
    return "\n".join([*_aligned(rows), *notes])


def _rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per task or group and metric."""
    rows = []
    for name, result in results["results"].items():
        questions = results["n-samples"].get(name, {}).get("effective", "")
        examples = results["n-shot"].get(name, "")
        for key, value in result.items():
            metric, comma, variant = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = _four_digits(result.get(f"{metric}_stderr,{variant}"))
            rows.append(
                (
                    name,
                    str(questions),
                    str(examples),
                    metric,
                    _four_digits(value),
                    error,
                )
            )
    return rows


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines in which the cells of a column begin below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _average(average: dict[str, Any]) -> list[str]:
    if average["value"] is None:
        return []
    counted = [f"{name} {task['metric']}" for name, task in average["tasks"].items()]
    return [f"average {average['value']:.4f} of {', '.join(counted)}"]


def _splits(data: dict[str, dict[str, str]]) -> list[str]:
    """A sentence for each task that was scored on another split than usual."""
    return [
        f"{task} was scored on {described['split']},"
        f" as {described['folder']} has no {described['usual_split']}"
        for task, described in data.items()
        if described["split"] != described["usual_split"]
    ]


def _four_digits(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else ""
