r"""Does our adapter of lm-eval agree with lm-eval's own `hf` model, and which is faster?

Both score the same requests in float32. Prints the largest difference of log-likelihoods, the
questions whose best choice differs with the gap between the two choices there, and tokens per
second: each request's tokens counted once, whatever is padded or shared. Programs are compiled
before the clock starts.

Command:  python benchmarks/downstream.py --hf=DIR --data=DIR \
              [--tasks=arc_easy,hellaswag,piqa,sciq,mmlu_anatomy] [--limit=50]
"""

import argparse
import logging
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from paired import describe, seconds

from sparsecod_jax.evaluate import tasks
from sparsecod_jax.evaluate.lm_eval_model import LanguageModel
from sparsecod_jax.pretrained.load import find_model, load_model
from sparsecod_jax.storage import files


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hf", required=True)
    parser.add_argument("--data")
    parser.add_argument("--tasks", default="arc_easy,hellaswag,piqa,sciq,mmlu_anatomy")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--batch_size", type=int, default=8, help="of the hf model")
    parser.add_argument("--dtype", default="float32", help="of the hf model")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    asked = tasks.load(
        args.tasks.split(","),
        files.absolute(args.data) if args.data else None,
        None,
        None,
    )
    instances = []
    for task in asked.tasks.values():
        task.build_all_requests(limit=args.limit)
        instances += [
            instance
            for instance in task.instances
            if instance.request_type == "loglikelihood"
        ]
    ours = LanguageModel(load_model(find_model(None, args.hf)))
    hf_model: Any = HFLM  # its registration hides its type
    theirs = hf_model(
        pretrained=args.hf, dtype=args.dtype, device="cpu", batch_size=args.batch_size
    )
    requests: Any = [
        (instance.args, *ours._encode_pair(*instance.args)) for instance in instances
    ]
    encoded: Any = [
        (instance.args, *theirs._encode_pair(*instance.args)) for instance in instances
    ]
    differing = sum(a != b for a, b in zip(requests, encoded, strict=True))
    print(f"{len(requests)} requests; {differing} are tokenized differently")

    answers: dict[str, Any] = {"ours": ours._loglikelihood_tokens(requests)}

    def run(model, name: str) -> None:
        answers[name] = model._loglikelihood_tokens(
            encoded if name == "theirs" else requests
        )

    times = np.array(
        [
            [seconds(lambda: run(ours, "ours")), seconds(lambda: run(theirs, "theirs"))]
            for _ in range(args.rounds)
        ]
    )
    tokens = sum(
        min(len(context) + len(continuation) - 1, ours.max_seq_len)
        for _, context, continuation in requests
    )
    compare(instances, answers["ours"], answers["theirs"])
    print(
        f"ours against theirs ({args.dtype}, {torch.get_num_threads()} threads,"
        f" batches of {args.batch_size}): {describe(times)}"
    )
    print(
        "tokens a second: "
        + ", ".join(f"{tokens / time:.0f}" for time in np.median(times, axis=0))
    )


def compare(instances: list, ours: list, theirs: list) -> None:
    """Prints where two lists of answers to the same requests differ."""
    gap = np.array([a - b for (a, _), (b, _) in zip(ours, theirs, strict=True)])
    greedy = sum(a != b for (_, a), (_, b) in zip(ours, theirs, strict=True))
    print(
        f"largest difference of log-likelihoods {np.abs(gap).max():.2e};"
        f" {greedy} differ in whether they are greedy"
    )
    questions: dict[tuple, list[int]] = {}
    for number, instance in enumerate(instances):
        questions.setdefault((instance.task_name, instance.doc_id), []).append(number)
    differing = []
    for question, numbers in questions.items():
        mine, other = (
            np.array([answers[number][0] for number in numbers])
            for answers in (ours, theirs)
        )
        if mine.argmax() != other.argmax():
            differing.append((question, float(np.diff(np.sort(other)[-2:])[0])))
    print(f"{len(differing)} of {len(questions)} questions have another best choice")
    for question, distance in differing:
        print(f"  {question}: the two best choices are {distance:.1e} apart")


if __name__ == "__main__":
    main()
