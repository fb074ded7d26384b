"""Workdir, data and checkpoints in a bucket: nothing is lost, and one process owns a run."""

import concurrent.futures
import importlib.util
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.data.prepare import Request, prepare
from sparsecod_jax.data.store import Windows, read_manifest
from sparsecod_jax.errors import ConfigError, Fenced, SparsecodError
from sparsecod_jax.report.writing import write_report
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.attempts import claim
from sparsecod_jax.storage.checkpoint import Checkpointer
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.train.writers import Writers
from tests.support import emulator, process, tiny_configs

missing = [
    package
    for package in ("gcsfs", "gcp_storage_emulator")
    if importlib.util.find_spec(package) is None
]
pytestmark = pytest.mark.skipif(
    bool(missing), reason=f"not installed: {', '.join(missing)}"
)


@pytest.fixture(scope="module", autouse=True)
def _emulator():
    with emulator.running(process.free_port()):
        yield


@pytest.fixture
def bucket(request):
    """A folder of the test's own."""
    return epath.Path("gs://bucket") / request.node.name


@pytest.fixture(scope="module")
def data(corpus):
    """The data directory of the fixture `tokens`, in the bucket."""
    out = "gs://bucket/data"
    prepare(Request(str(corpus), vocab_size=300, validation_fraction=0.2), out)
    return epath.Path(out)


def _names(folder):
    return sorted(str(path.relative_to(folder)) for path in _walk(folder))


def _walk(folder):
    for path in folder.iterdir():
        yield from _walk(path) if path.is_dir() else [path]


def test_train_kill_resume_be_overtaken_resume_report_and_nothing_is_lost(
    tokens, data, bucket, tmp_path
):
    """The run in the bucket ends bitwise where an uninterrupted one on the disk does."""

    def experiment(path):
        sections = {
            "mesh": config.Mesh(1, 1, 1, 1),
            "data": {"path": str(path)},
            "log": {"every": 5},
        }
        return tiny_configs.experiment(steps=30, checkpoint={"every": 5}, **sections)

    whole, run = RunDir(epath.Path(tmp_path)), RunDir(bucket)
    uninterrupted = process.start(experiment(tokens), whole.path)

    victim = process.start(experiment(data), bucket)
    process.wait_for_line(victim, run.metrics, step := random.choice((5, 10)))
    time.sleep(
        pause := random.uniform(0, 0.5)
    )  # before, while or after that checkpoint is written
    print(f"killed {pause:.2f} s after the lines of step {step}")
    victim.kill()
    assert victim.wait() == -signal.SIGKILL

    older = process.start(experiment(data), bucket)
    process.wait_for_line(older, run.metrics, len(run.read_metrics()) + 5)
    with claim(run) as attempt:
        assert attempt.number == 3
        assert "attempt 3 took over" in process.finish(older, code=76)

    assert "restored step" in process.finish(process.start(experiment(data), bucket))
    process.finish(uninterrupted)
    assert _lines(run) == _lines(whole)
    final, expected = records.read_json(run.final), records.read_json(whole.final)
    assert final["loss"] == expected["loss"]
    assert records.read_json(run.status)["status"] == "finished"
    assert len(list(run.tensorboard.iterdir())) == 3
    assert str(write_report(str(bucket))) == f"{bucket}/report.html"
    assert "1 of 1 runs finished" in run.report.read_text()


def _lines(run):
    return [
        {name: value for name, value in line.items() if name != "tokens_per_second"}
        for line in run.read_metrics()
    ]


def test_starts_at_the_same_moment_get_numbers_of_their_own(bucket):
    def start(_):
        with claim(RunDir(bucket)) as attempt:
            return attempt.number

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(start, range(8))) == list(range(1, 9))


START = """
import sys
from etils import epath
from sparsecod_jax.storage.attempts import claim
from sparsecod_jax.storage.rundir import RunDir

with claim(RunDir(epath.Path(sys.argv[1]))):
    pass
"""


def test_a_newer_attempt_of_another_process_is_seen_and_its_files_are_left_alone(
    bucket,
):
    run = RunDir(bucket)
    with claim(run) as attempt:
        attempt.check_still_owner()
        writers = Writers(attempt)
        writers.begin(0)
        writers.write({"step": 1, "loss": 2.5}, tensorboard=True)
        assert not run.metrics.exists()
        writers.sync()
        assert run.read_metrics() == [{"step": 1, "loss": 2.5}]
        writers.write({"step": 2, "loss": 1.5}, tensorboard=True)
        subprocess.run([sys.executable, "-c", START, bucket], check=True)
        with pytest.raises(Fenced, match=r"attempt 2 took over"):
            writers.sync()
        with pytest.raises(Fenced, match=r"attempt 2 took over"):
            writers.close()
    assert run.read_metrics() == [{"step": 1, "loss": 2.5}]


def test_metrics_and_curves_are_whole_after_close_and_older_curves_stay(bucket):
    run = RunDir(bucket)
    for steps in ((1, 2, 3), (3, 4)):
        with claim(run) as attempt:
            writers = Writers(attempt)
            writers.begin(steps[0] - 1)
            for step in steps:
                writers.write({"step": step, "by": attempt.number}, tensorboard=True)
            time.sleep(2 - attempt.number)  # event files are named by the second
            writers.close()
    lines = [(line["step"], line["by"]) for line in run.read_metrics()]
    assert lines == [(1, 1), (2, 1), (3, 2), (4, 2)]
    sizes = [file.stat().length for file in run.tensorboard.iterdir()]
    assert len(sizes) == 2
    assert min(sizes) > 100


def test_windows_are_those_of_local_data(tokens, data):
    here, there = read_manifest(tokens, "command"), read_manifest(data, "command")
    assert there.fingerprint == here.fingerprint
    assert not (data / "work").exists()
    for split in (there.train, there.validation):
        local, remote = (
            Windows(tokens, here, split, 32),
            Windows(data, there, split, 32),
        )
        assert len(local) == len(remote) > 10
        for index in range(0, len(local), 7):
            np.testing.assert_array_equal(remote[index], local[index])
    np.testing.assert_array_equal(
        Windows(data, there, there.train, 1).tokens(5, 10**9),
        Windows(tokens, here, here.train, 1).tokens(5, 10**9),
    )


def test_sources_tokenizers_and_raw_ids_may_lie_in_a_bucket(bucket, tokens):
    """Text whose tokenizer is another data directory's, then the ids that came out as raw parts."""
    for number in range(30):
        files.write(
            bucket / "text" / f"{number:02d}.txt",
            f"document {number} of stone and light {number * number}".encode(),
        )
    files.write(bucket / "tokenizer.json", (tokens / "tokenizer.json").read_bytes())
    options = {"tokenizer": f"{bucket}/tokenizer.json", "validation_fraction": 0.2}
    made = prepare(Request(f"{bucket}/text", **options), f"{bucket}/out")
    kept = made.train.documents + made.validation.documents
    assert kept + made.dropped_documents == 30
    ids = Windows(bucket / "out", made, made.train, 1).tokens(0, made.train.tokens)
    for number, part in enumerate(np.split(ids, [ids.size // 3])):
        files.write(
            bucket / "raw" / f"part-{number:05d}.npy", part.astype("<u2").tobytes()
        )
    raw = prepare(Request(f"{bucket}/raw", **options), f"{bucket}/of_raw")
    assert raw.train.tokens + raw.validation.tokens == ids.size
    assert raw.train.shards[0].file == f"{bucket}/raw/part-00000.npy"
    (held_out,) = raw.validation.shards
    first = held_out.offset // 2 + (
        ids.size // 3 if held_out.file.endswith("1.npy") else 0
    )
    window = Windows(bucket / "of_raw", raw, raw.validation, 1).tokens(
        0, held_out.tokens
    )
    np.testing.assert_array_equal(window, ids[first : first + held_out.tokens])
    (bucket / "raw" / "part-00001.npy").unlink()
    with pytest.raises(ConfigError, match=r"raw/part-00001\.npy is missing or shorter"):
        read_manifest(bucket / "of_raw", "command")


def _state(step):
    return {
        "weights": jax.random.normal(jax.random.key(step), (16, 24)),
        "step": jnp.int32(step),
    }


def _save(run, *steps):
    checkpointer = Checkpointer(run, keep=3)
    for step in steps:
        checkpointer.save(step, {"state": _state(step)}, {"note": step})
        checkpointer.wait()
    checkpointer.close()


def _restored_step(run):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        _state(0),
    )
    checkpointer = Checkpointer(run, keep=3)
    restored = checkpointer.restore_latest({"state": abstract})
    checkpointer.close()
    assert restored is not None
    assert jax.tree.all(
        jax.tree.map(np.array_equal, restored.items["state"], _state(restored.step))
    )
    return restored.step


def test_a_step_without_its_commit_marker_is_not_a_checkpoint(bucket):
    run = RunDir(bucket)
    _save(run, 10, 20, 30, 40)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["20", "30", "40"]
    (run.checkpoints / "40" / "commit_success.txt").unlink()
    assert _restored_step(run) == 30
    _save(run, 40)
    assert _restored_step(run) == 40


def test_a_save_without_its_commit_marker_has_failed(bucket):
    run = RunDir(bucket)
    checkpointer, marker = (
        Checkpointer(run, keep=3),
        run.checkpoints / "10" / "commit_success.txt",
    )
    checkpointer.save(10, {"state": _state(10)}, {})
    while not marker.exists():
        time.sleep(0.01)
    marker.unlink()  # as another process does that clears away what it takes for a crash's remains
    with pytest.raises(SparsecodError, match="saving step 10 failed"):
        checkpointer.wait()
    checkpointer.close()


def test_a_flipped_bit_sends_the_step_to_quarantine(bucket, capsys):
    run = RunDir(bucket)
    _save(run, 10, 20)
    broken = max(
        _walk(run.checkpoints / "20" / "state"), key=lambda file: file.stat().length
    )
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    files.write(broken, bytes(content))
    before = _names(run.checkpoints / "20")
    assert _restored_step(run) == 10
    assert "checkpoint 20 can't be used" in capsys.readouterr().out
    assert _names(run.quarantine / "20-0") == before
    assert [path.name for path in run.checkpoints.iterdir()] == ["10"]


def test_a_bucket_that_does_not_exist_is_named(corpus):
    nowhere = epath.Path("gs://absent/run")
    sentence = (
        r"^gs://absent/run.* can't be written, there is no such bucket: make it first"
    )
    with pytest.raises(ConfigError, match=sentence), claim(RunDir(nowhere)):
        pass
    with pytest.raises(ConfigError, match=sentence):
        prepare(Request(str(corpus), tokenizer="bytes"), str(nowhere))
