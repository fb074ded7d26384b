"""GPUs for several runs at a time: those of nvidia-smi or of CUDA_VISIBLE_DEVICES."""

import sys

import pytest

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel import devices
from sparsecod_jax.study import gpus
from sparsecod_jax.study.run_local import sweep
from tests.support import study_files


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in (*devices.SHARES, gpus.VISIBLE):
        monkeypatch.delenv(name, raising=False)


def _install(folder, monkeypatch, script):
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_each_gets_its_own(tmp_path, monkeypatch):
    listed = ("GPU 0: A", "  MIG 1g: B", "GPU 1: A", "GPU 2: A", "GPU 3: A")
    commands = ['test "$1" = --list-gpus', *(f'echo "{line}"' for line in listed)]
    _install(tmp_path, monkeypatch, " && ".join(commands))
    assert gpus.environments(4) == [{gpus.VISIBLE: str(number)} for number in range(4)]
    assert gpus.environments(2) == [{gpus.VISIBLE: "0,1"}, {gpus.VISIBLE: "2,3"}]
    assert gpus.environments(3) == [
        {gpus.VISIBLE: "0"},
        {gpus.VISIBLE: "1"},
        {gpus.VISIBLE: "2"},
    ]
    assert gpus.environments(1) == [{}]


def test_only_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "5, GPU-0ab")
    visible = [added[gpus.VISIBLE] for added in gpus.environments(2)]
    assert visible == ["5", "GPU-0ab"]
    monkeypatch.setenv(gpus.VISIBLE, "")
    assert gpus.environments(2) == [{}, {}]


def test_more_runs_than_gpus_share_memory(monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "0,1")
    environments = gpus.environments(5)
    visible = [added[gpus.VISIBLE] for added in environments]
    assert visible == ["0", "1", "0", "1", "0"]
    shares = {added["XLA_CLIENT_MEM_FRACTION"] for added in environments}
    assert shares == {"0.300"}
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")
    assert gpus.environments(3)[2] == {
        gpus.VISIBLE: "0",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.300",
    }


def test_memory_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "0")
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0,9")
    with pytest.raises(
        ConfigError,
        match=r"XLA_CLIENT_MEM_FRACTION=0,9 is not a number: write it like 0\.9",
    ):
        gpus.environments(2)


@pytest.mark.parametrize("script", ["echo NVIDIA-SMI has failed; exit 9", None])
def test_a_machine_without_gpus(script, tmp_path, monkeypatch):
    _install(tmp_path, monkeypatch, script)
    if not script:
        (tmp_path / "nvidia-smi").unlink()
    assert gpus.environments(2) == [{}, {}]


def test_a_sweep_hands_them_to_its_runs(tokens, tmp_path, monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "0,1")
    spec = study_files.write(tmp_path, tokens, study_files.TWO)
    wrapper = tmp_path / "seen.sh"
    wrapper.write_text(
        "#!/bin/sh\n"
        f'echo "$CUDA_VISIBLE_DEVICES $1" >> {tmp_path}/seen\n'
        'exec "$PYTHON" -m sparsecod_jax "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setattr("sparsecod_jax.study.run_local.SPARSECOD", (str(wrapper),))
    sweep(spec, str(tmp_path / "study"), jobs=2)
    seen = (tmp_path / "seen").read_text().split("\n")
    assert {line for line in seen if line.endswith("train")} == {"0 train", "1 train"}
