"""Which subcommands and options are there?

Command line: what `sparsecod --help` shows. `cli` says what each subcommand calls.
"""

import argparse

from sparsecod_jax.analysis.catalogue import CATALOGUE

MODELS = "Llama, Mistral, SmolLM2, or what `sparsecod export` wrote"
NEWEST = "run directory; its newest checkpoint that verifies is taken"

Parser = argparse.ArgumentParser


def parser() -> Parser:
    """The parser of all subcommands; the name of the one given is `subcommand`."""
    main = Parser(
        prog="sparsecod",
        description="Does depth pay? "
        "Pretrain Pre-LN language models and watch every layer.",
    )
    subcommands = main.add_subparsers(
        dest="subcommand", required=True, metavar="SUBCOMMAND"
    )
    for name, (add_options, description) in SUBCOMMANDS.items():
        options = subcommands.add_parser(name, help=description, allow_abbrev=False)
        add_options(options)
    return main


def _data(options: Parser) -> None:
    options.add_argument(
        "--source",
        required=True,
        help="sotu, stdlib, hf:NAME[:CONFIG], a folder of save_to_disk, "
        "or a file or folder of text, JSONL, CSV, parquet or part-*.npy ids",
    )
    options.add_argument("--out", required=True, help="directory to make")
    options.add_argument(
        "--tokenizer",
        default="bpe",
        help="bytes, bpe (trained on the training split), or the path of a tokenizer.json",
    )
    options.add_argument(
        "--vocab_size", type=int, default=2048, help="ids of a trained bpe"
    )
    options.add_argument(
        "--eos_id",
        type=int,
        help="end-of-document id, where the tokenizer.json does not name it",
    )
    options.add_argument(
        "--split_seed", type=int, default=0, help="decides which documents are held out"
    )
    options.add_argument(
        "--validation_fraction",
        type=float,
        default=0.05,
        help="expected share of held-out documents",
    )
    options.add_argument(
        "--text_field",
        default="text",
        help="field or column of the documents (default %(default)s)",
    )
    options.add_argument(
        "--split", help="split of the source, where it has some (default train)"
    )
    options.add_argument(
        "--separator",
        help=r"what divides the documents of a text file, as <|endoftext|> or \n\n",
    )
    options.add_argument(
        "--dedup",
        choices=("near", "exact", "off"),
        default="near",
        metavar="KIND",
        help="which copies of earlier documents are dropped: "
        "near ones (the default), exact ones, or none (off)",
    )
    options.add_argument(
        "--max_documents", type=int, help="read that many documents at most"
    )
    options.add_argument(
        "--max_tokens",
        type=int,
        help="make that many training tokens at most, of whole documents",
    )


def _train(options: Parser) -> None:
    options.add_argument(
        "--config",
        required=True,
        help="CONFIG[:SCALE], the name of a config of this package or the path of a file; "
        "override fields with --config.model.n_layers=8 and the like",
    )
    options.add_argument("--workdir", required=True, help="run directory")
    options.add_argument(
        "--profile",
        action="store_true",
        help="record a profiler trace of a few steps under WORKDIR/profile",
    )
    options.add_argument(
        "--coordinator",
        help="HOST:PORT where process 0 of several listens; "
        "found automatically under Slurm, on GKE and TPU VMs",
    )
    options.add_argument(
        "--process_count",
        type=int,
        help="how many processes train; 1, given alone, means just this one",
    )
    options.add_argument(
        "--process_index", type=int, help="which of them this one is, from 0"
    )


def _analyze(options: Parser) -> None:
    _model(options)
    options.add_argument(
        "--scores", help=f"some of {','.join(CATALOGUE)} (default all)"
    )
    options.add_argument(
        "--token_file",
        help=".npy file of integers [N, T]: scores exactly these sequences",
    )
    formerly(options, "--tokens", "token_file")
    options.add_argument(
        "--data_dir",
        help="directory made by `sparsecod data` from which they are drawn "
        "(default the run's own)",
    )
    formerly(options, "--data", "data_dir")
    options.add_argument("--sequences", type=int, help="how many to draw (default 100)")
    options.add_argument(
        "--seq_len", type=int, help="their length in tokens (default 512)"
    )
    options.add_argument(
        "--split",
        choices=("validation", "train"),
        metavar="SPLIT",
        help="validation (the default) or train",
    )
    _seed(options, "decides which sequences, cuts and probes")
    options.add_argument(
        "--every_sequence",
        action="store_true",
        help="have costly scores take all sequences too, not the first few",
    )
    options.add_argument(
        "--jacobian",
        choices=("exact", "estimate"),
        metavar="METHOD",
        help="exact (the default up to width 512) or estimate",
    )
    options.add_argument("--out", help="folder to write (default WORKDIR/analysis)")


def _export(options: Parser) -> None:
    options.add_argument("--workdir", required=True, help=NEWEST)
    options.add_argument("--out", required=True, help="folder to make")
    options.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        metavar="DTYPE",
        help="of the weights (default %(default)s)",
    )


def _import(options: Parser) -> None:
    options.add_argument(
        "--hf", required=True, help=f"Hugging Face model folder: {MODELS}"
    )
    options.add_argument("--workdir", required=True, help="run directory to make")


def _eval(options: Parser) -> None:
    _model(options)
    options.add_argument(
        "--tasks",
        required=True,
        help="names of lm-eval's tasks or groups, separated by commas: "
        "arc_easy,hellaswag,mmlu",
    )
    options.add_argument(
        "--limit", type=int, help="questions per task at most, to try it out"
    )
    options.add_argument(
        "--num_fewshot",
        type=int,
        help="examples before each question (default: as the task says, else 0)",
    )
    options.add_argument(
        "--task_data",
        help="folder of data sets, DATASET/CONFIG_OR_none/SPLIT, "
        "used in place of the hub's",
    )
    formerly(options, "--data", "task_data")
    options.add_argument(
        "--include",
        help="folder of further tasks, lm-eval's YAML files, which are code: see --trust",
    )
    options.add_argument(
        "--trust",
        action="store_true",
        help="run the code in the tasks of --include, as you trust whoever wrote it",
    )
    options.add_argument(
        "--out",
        help="JSON file to write (default WORKDIR/evaluation.json; with --hf none)",
    )


def _generate(options: Parser) -> None:
    _model(options)
    options.add_argument(
        "--prompt", required=True, help="the text to continue; may be empty"
    )
    options.add_argument(
        "--max_new_tokens",
        type=int,
        default=64,
        help="tokens to write at most (default %(default)s)",
    )
    formerly(options, "--tokens", "max_new_tokens", type=int)
    options.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0 (the default) takes the likeliest token, above it samples",
    )
    _seed(options, "of the sampling")


def _plan(options: Parser) -> None:
    options.add_argument(
        "--config", required=True, help="CONFIG[:SCALE]; override fields as for train"
    )
    options.add_argument(
        "--topology",
        required=True,
        action="append",
        help="v5p:4x4x4, v5e:4x4, v5p:4x4x4*2, h100:8x8 or the like; may be repeated",
    )
    options.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="assumed model FLOPs utilisation, for times (default %(default)s)",
    )
    options.add_argument(
        "--every_remat",
        action="store_true",
        help="also compile every remat policy and list which fit",
    )
    options.add_argument(
        "--out", help="JSON file to write, a list with one plan per topology"
    )


def _sweep(options: Parser) -> None:
    options.add_argument(
        "--sweep",
        required=True,
        help="STUDY[:SCALE], the name of a study of this package, such as depth:nano, "
        "or the path of a file",
    )
    options.add_argument("--workdir", required=True, help="directory of the study")
    options.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs at a time, which share out the GPUs (default %(default)s)",
    )
    options.add_argument(
        "--max_hours", type=float, help="stop after this time, at a checkpoint"
    )
    options.add_argument(
        "--dry_run", action="store_true", help="list the runs and write nothing"
    )


def _report(options: Parser) -> None:
    options.add_argument(
        "--workdir", required=True, help="run directory or folder of run directories"
    )
    options.add_argument(
        "--out", help="folder to write report.html into (default WORKDIR)"
    )


def _model(options: Parser) -> None:
    """A trained model, in either of two places."""
    options.add_argument("--workdir", help=NEWEST)
    options.add_argument("--hf", help=f"or a Hugging Face model folder: {MODELS}")


def _seed(options: Parser, meaning: str) -> None:
    help_text = f"{meaning} (default %(default)s)"
    options.add_argument("--seed", type=int, default=0, help=help_text)


def formerly(options: Parser, old: str, dest: str, type: type = str) -> None:
    """The name that an option had before 0.1.0, which scripts may still use."""
    options.add_argument(
        old, dest=dest, type=type, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


SUBCOMMANDS = {
    "data": (_data, "turn text into token shards"),
    "train": (_train, "train one model, or resume it"),
    "analyze": (_analyze, "score every layer of a checkpoint"),
    "export": (_export, "write a run as a stock Hugging Face model"),
    "import": (_import, "make a run of a Hugging Face model"),
    "eval": (_eval, "score a trained model on tasks of lm-eval"),
    "generate": (_generate, "continue a text"),
    "plan": (_plan, "compile a run for a pod that is not here: memory and collectives"),
    "sweep": (_sweep, "run a study on this machine, or resume it"),
    "report": (_report, "draw a run, or a folder of runs, as one page"),
}
