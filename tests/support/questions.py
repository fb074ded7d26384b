"""Data sets of questions, and a quick index of a few of lm-eval's tasks.

Data sets are saved as `sparsecod eval --task_data` reads them.
"""

from pathlib import Path

import datasets
import lm_eval.tasks
from lm_eval.tasks import TaskManager

TASKS = Path(lm_eval.tasks.__file__).parent
FEW = (
    "arc",
    "hellaswag",
    "piqa",
    "sciq",
    "siqa",
    "openbookqa",
    "winogrande",
    "super_glue/boolq",
    "mmlu/default",
    "triviaqa",
)

GENERATES = """
task: writes
dataset_path: nowhere
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
"""

PERPLEXITY = """
task: pages
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
"""


def few_tasks(include_path=None) -> TaskManager:
    """Like TaskManager, which takes many seconds to read all tasks that there are."""
    return TaskManager(
        include_path=[
            *(TASKS / name for name in FEW),
            *([include_path] if include_path else []),
        ],
        include_defaults=False,
    )


def save(folder, path: str, rows: list[dict]) -> None:
    """A split."""
    datasets.Dataset.from_list(rows).save_to_disk(folder / path)


def arc(count: int, begin: str) -> list[dict]:
    """Questions of four choices."""
    return [
        {
            "id": f"{begin}{number}",
            "question": f"{begin} {number} is what",
            "choices": {
                "text": [
                    f"{word} {number}"
                    for word in ("stone", "a river", "light", "old paper")
                ],
                "label": list("ABCD"),
            },
            "answerKey": "ABCD"[number % 4],
        }
        for number in range(count)
    ]


def boolq(count: int) -> list[dict]:
    return [
        {
            "question": f"is it {number}",
            "passage": f"it is {number}",
            "answer": number % 3 == 0,
        }
        for number in range(count)
    ]


def mmlu(count: int, begin: str) -> list[dict]:
    return [
        {
            "question": f"{begin} {number}",
            "subject": "anatomy",
            "choices": ["a", "b", "c", "d"],
            "answer": number % 4,
        }
        for number in range(count)
    ]


def hellaswag(count: int) -> list[dict]:
    return [
        {
            "ind": number,
            "activity_label": "Walking",
            "ctx_a": f"She walks {number}.",
            "ctx_b": "then she",
            "ctx": f"She walks {number}. then she",
            "endings": [
                "walks on.",
                "is a stone.",
                "sees light [title] there.",
                "rests.",
            ],
            "label": str(number % 4),
        }
        for number in range(count)
    ]
