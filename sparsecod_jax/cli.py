"""What does each subcommand call?

Subcommands: parsed by `shell.arguments`, called here; no logic. Each imports what it needs,
so that `data` does not wait for jax.
"""

import json
import sys
from argparse import Namespace

from sparsecod_jax.errors import UsageError
from sparsecod_jax.parallel import devices, xla_flags
from sparsecod_jax.shell import arguments, options
from sparsecod_jax.shell.ending import exit_code_of

Overrides = list[str]  # words such as --config.model.n_layers=8


def main(argv: list[str] | None = None) -> None:
    """The console script `sparsecod`; exits with the codes of `errors`."""
    owns_process = argv is None
    argv = sys.argv[1:] if argv is None else argv
    args, rest = arguments.parser().parse_known_args(argv)
    args.owns_process = owns_process  # and may have its signals and streams
    program = f"sparsecod {args.subcommand}"
    if code := exit_code_of(program, lambda: _run(args, rest, argv)):
        sys.exit(code)


def _run(args: Namespace, rest: list[str], argv: list[str]) -> None:
    overrides = _overrides(args, rest)
    options.check(args, argv)
    devices.gpu_share()  # refuses what jax would lose the GPU over
    xla_flags.compute_own_reductions()
    from sparsecod_jax.storage.buckets import check_named  # --help does without it

    check_named(*vars(args).values())
    CALLS[args.subcommand](args, overrides)


def _overrides(args: Namespace, rest: list[str]) -> Overrides:
    """The words that override config fields; any others are refused."""
    overrides = [word for word in rest if word.startswith("--config.")]
    unknown = [word for word in rest if word not in overrides]
    takes_config = hasattr(args, "config")
    if unknown or (overrides and not takes_config):
        words = " ".join(unknown or overrides)
        name = args.subcommand
        message = f"{words} is not an option of {name}: see sparsecod {name} --help"
        raise UsageError(message)
    return overrides


def _check_alone(args: Namespace) -> None:
    from sparsecod_jax.parallel.processes import check_alone

    one = f"{args.subcommand} is one process, with all the devices of its host"
    check_alone(f"{one}: start it once")


def _data(args: Namespace, overrides: Overrides) -> None:
    from sparsecod_jax.data.prepare import Request, prepare

    is_trained = args.tokenizer == "bpe"
    request = Request(
        source=args.source,
        tokenizer=args.tokenizer,
        vocab_size=args.vocab_size if is_trained else 0,
        eos_id=args.eos_id,
        split_seed=args.split_seed,
        validation_fraction=args.validation_fraction,
        text_field=args.text_field,
        split=args.split,
        separator=_unescaped(args.separator),
        dedup=args.dedup,
        max_documents=args.max_documents,
        max_tokens=args.max_tokens,
    )
    print(prepare(request, args.out).describe())


def _unescaped(separator: str | None) -> str | None:
    r"""A shell passes on \n and \t as they are written."""
    if separator is None:
        return None
    return separator.replace(r"\n", "\n").replace(r"\t", "\t")


def _train(args: Namespace, overrides: Overrides) -> None:
    from sparsecod_jax.config.load import load_experiment
    from sparsecod_jax.shell.console import use_nonblocking_output
    from sparsecod_jax.shell.stopping import STOP
    from sparsecod_jax.storage.buckets import check_named

    if args.owns_process:
        STOP.listen()
        use_nonblocking_output()
    experiment = load_experiment(
        args.config, overrides
    )  # refuses before jax is imported
    check_named(experiment.data.path)
    from sparsecod_jax.parallel import processes

    address = (args.coordinator, args.process_count, args.process_index)
    with processes.connected(*address, owns_process=args.owns_process):
        from sparsecod_jax.parallel.compilation import keep_programs
        from sparsecod_jax.train.loop import train

        keep_programs()
        result = train(experiment, args.workdir, profile=args.profile)
        processes.print_once(json.dumps(result))


def _analyze(args: Namespace, overrides: Overrides) -> None:
    from sparsecod_jax.analysis.scores import analyze
    from sparsecod_jax.parallel.compilation import keep_programs

    xla_flags.leave_products_to_libraries()
    _check_alone(args)
    keep_programs()
    folder = analyze(
        args.workdir,
        hf=args.hf,
        scores=args.scores,
        tokens=args.token_file,
        data=args.data_dir,
        sequences=args.sequences,
        seq_len=args.seq_len,
        split=args.split,
        seed=args.seed,
        every_sequence=args.every_sequence,
        jacobian=args.jacobian,
        out=args.out,
    )
    print(f"scores: {folder}")


def _export(args: Namespace, overrides: Overrides) -> None:
    from sparsecod_jax.pretrained.exporting import export

    _check_alone(args)
    print(f"exported: {export(args.workdir, args.out, dtype=args.dtype)}")


def _import(args: Namespace, overrides: Overrides) -> None:
    from sparsecod_jax.pretrained.importing import import_model

    _check_alone(args)
    print(f"imported: {import_model(args.hf, args.workdir)}")


def _eval(args: Namespace, overrides: Overrides) -> None:
    from sparsecod_jax.evaluate.downstream import evaluate
    from sparsecod_jax.parallel.compilation import keep_programs

    _check_alone(args)
    keep_programs()
    table = evaluate(
        args.workdir,
        args.hf,
        args.tasks,
        limit=args.limit,
        num_fewshot=args.num_fewshot,
        data=args.task_data,
        include=args.include,
        trust=args.trust,
        out=args.out,
    )
    print(table)


def _generate(args: Namespace, overrides: Overrides) -> None:
    from sparsecod_jax.evaluate.generate import generate
    from sparsecod_jax.parallel.compilation import keep_programs
    from sparsecod_jax.pretrained.load import find_model, load_model

    _check_alone(args)
    keep_programs()
    model = load_model(find_model(args.workdir, args.hf))
    sampling = (args.max_new_tokens, args.temperature, args.seed)
    print(args.prompt + generate(model, args.prompt, *sampling))


def _plan(args: Namespace, overrides: Overrides) -> None:
    from sparsecod_jax.config.load import load_experiment

    experiment = load_experiment(args.config, overrides)
    from sparsecod_jax.plan.plan import plan_all

    every_remat = args.every_remat
    plan_all(experiment, args.topology, args.mfu, args.out, every_remat=every_remat)


def _sweep(args: Namespace, overrides: Overrides) -> None:
    from sparsecod_jax.shell.console import use_nonblocking_output
    from sparsecod_jax.study.run_local import sweep

    if args.owns_process:
        use_nonblocking_output()
    answer = sweep(
        args.sweep,
        args.workdir,
        jobs=args.jobs,
        max_hours=args.max_hours,
        dry_run=args.dry_run,
    )
    print(answer)


def _report(args: Namespace, overrides: Overrides) -> None:
    from sparsecod_jax.report.writing import write_report

    print(f"report: {write_report(args.workdir, args.out)}")


CALLS = {
    "data": _data,
    "train": _train,
    "analyze": _analyze,
    "export": _export,
    "import": _import,
    "eval": _eval,
    "generate": _generate,
    "plan": _plan,
    "sweep": _sweep,
    "report": _report,
}
