"""Queued resources are requested once, and again when they are gone.

gcloud knows every command that is sent, and hosts keep the contract of exit codes.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from launch import tpu_vm
from sparsecod_jax import errors
from sparsecod_jax.errors import ConfigError, Fenced, SparsecodError
from sparsecod_jax.launching import launching
from tests.support import sending, xpk
from tests.support.sending import ANALYZE, AS_WHEEL, HOSTILE, IN_IMAGE, TRAIN

ENGINE = tpu_vm.TpuVm()
WHERE = ("--project=project", "--zone=us-east5-a")
NAME = f"deep-s0-{launching.study_id(sending.options(ENGINE, *WHERE))}"
DOCS = Path(__file__).parents[2] / "docs" / "launch.md"
CANARY = "CANARY-4f1c"
PATH = os.environ["PATH"]  # on which gcloud is itself

# A project that knows what was created.
GCLOUD = """
project = json.load(open(folder + "/project"))
name = words[words.index("queued-resources") + 2]
if "list" in words:
    path = "projects/p/locations/z/queuedResources/"
    resources = []
    for name, state in project.items():
        resources.append({"name": path + name, "state": {"state": state}})
    print(json.dumps(resources))
elif "create" in words:
    if name in project:
        sys.exit("already exists")
    project[name] = "WAITING_FOR_RESOURCES"
elif "delete" in words:
    del project[name]
json.dump(project, open(folder + "/project", "w"))
"""


@pytest.fixture
def recorder(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    return sending.Recorder(folder, monkeypatch)


@pytest.fixture
def cloud(recorder):
    recorder.put("project", {})
    recorder.add("gcloud", GCLOUD)
    return recorder


def described(
    topology="v5p:4x4x4", commands=(TRAIN,), code_package=IN_IMAGE, options=()
):
    args = sending.options(ENGINE, *WHERE, *options)
    files = ENGINE.render([sending.job(topology, commands)], code_package, args)
    assert list(files) == ["tpu_vm_host.sh", "deep-s0.json"]
    return json.loads(files["deep-s0.json"])


def send(tmp_path, jobs, *words):
    sending.submit(ENGINE, tmp_path, jobs, *WHERE, *words)


def actions(cloud):
    return [call[call.index("queued-resources") + 1] for call in cloud.calls("gcloud")]


@pytest.mark.parametrize("topology", [name for name in xpk.TYPES if "*" not in name])
def test_slices_have_the_names_that_xpk_has_for_them(topology):
    assert tpu_vm.accelerator_type(topology) == xpk.TYPES[topology]


@pytest.mark.parametrize(
    "topology", ["v5p:2x4x8", "v5p:4x4x12", "v5p:4x4x2", "v6e:4x2", "v4:2x2x8"]
)
def test_slices_whose_name_would_bring_others_are_refused(topology):
    with pytest.raises(ConfigError, match="has no name among TPU VMs"):
        described(topology)


@pytest.mark.parametrize(
    ("topology", "options", "message"),
    [
        ("h100:8", (), "is none of TPUs"),
        ("v5p:4x4", (), "is not known"),
        ("v5e:4x4", ("--max_restarts=-1",), "is below 0"),
    ],
)
def test_what_cannot_be_a_tpu_vm_is_refused(topology, options, message):
    with pytest.raises(ConfigError, match=message):
        described(topology, options=options)


@pytest.mark.parametrize(
    "image", ["--privileged", "a b", "image;id", " ", "-v/:/host", "image\n"]
)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ConfigError, match="names no image"):
        described(code_package=dataclasses.replace(IN_IMAGE, image=image))


def test_what_a_host_does_with_an_image():
    login, pull, run = described(commands=(TRAIN, ANALYZE))["commands"]
    registry = "region-docker.pkg.dev"
    assert login == ["gcloud", "auth", "configure-docker", registry, "--quiet"]
    assert pull == ["docker", "pull", "--quiet", IN_IMAGE.image]
    assert run[:2] == ["docker", "run"]
    words = run[run.index(IN_IMAGE.image) + 1 :]
    start = ["python", "-P", "-m", "sparsecod_jax.launching.host", *TRAIN]
    assert words[: len(start)] == start
    assert words[-len(ANALYZE) :] == list(ANALYZE)
    assert "TPU_PROCESS_BOUNDS=1,1,1" in words
    *_, alone = described("v6e:2x4", (TRAIN, ANALYZE))["commands"]
    assert "TPU_PROCESS_BOUNDS=1,1,1" not in alone


def test_what_a_host_does_with_a_wheel():
    make, fetch, install, run = described(code_package=AS_WHEEL)["commands"]
    folder = f"/code/{sending.SHA256[:16]}"
    source = os.path.dirname(sending.WHEEL)
    assert make == ["mkdir", "--parents", "/code"]
    assert fetch == ["gcloud", "storage", "cp", source, "/code", "--recursive"]
    assert install[-1].endswith(f"#sha256={sending.SHA256}")
    for option in (
        "--env=PYTHONPATH=/code/site",
        f"--workdir={folder}",
        "--volume=/code:/code",
    ):
        assert option in run


def test_submitting_again_asks_for_nothing_again(cloud, tmp_path):
    jobs = [sending.job("v5e:4x4", name=name) for name in ("deep-s0", "flat-s0")]
    send(tmp_path, jobs[:1])
    send(tmp_path, jobs)
    send(tmp_path, jobs)
    assert actions(cloud) == ["list", "create", "list", "create", "list"]
    assert list(cloud.get("project")) == [NAME, NAME.replace("deep", "flat")]


@pytest.mark.parametrize(
    "state", ["ACTIVE", "PROVISIONING", "WAITING_FOR_RESOURCES", "ACCEPTED", "CREATING"]
)
def test_what_is_there_or_under_way_is_left_alone(state, cloud, tmp_path):
    cloud.put("project", {NAME: state})
    send(tmp_path, [sending.job("v5e:4x4")])
    assert actions(cloud) == ["list"]
    states = ENGINE.query([sending.job("v5e:4x4")], sending.options(ENGINE, *WHERE))
    expected = "running" if state == "ACTIVE" else "pending"
    assert states == {"deep-s0": expected}


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_what_was_preempted_or_failed_is_deleted_and_asked_for_again(
    state, cloud, tmp_path
):
    cloud.put("project", {NAME: state, "another": "ACTIVE"})
    states = ENGINE.query([sending.job("v5e:4x4")], sending.options(ENGINE, *WHERE))
    assert states == {"deep-s0": state.lower()}
    send(tmp_path, [sending.job("v5e:4x4")], "--spot")
    assert actions(cloud)[1:] == ["list", "delete", "create"]
    assert cloud.get("project") == {"another": "ACTIVE", NAME: "WAITING_FOR_RESOURCES"}


@pytest.mark.parametrize("state", ["SUSPENDING", "DELETING"])
def test_what_is_going_is_waited_for(state, cloud, tmp_path):
    cloud.put("project", {NAME: state})
    message = f"{NAME} is {state.lower()}: submit again in some minutes"
    with pytest.raises(SparsecodError, match=message):
        send(tmp_path, [sending.job("v5e:4x4")])
    assert actions(cloud) == ["list"]


def test_cancel_deletes_what_this_study_has_and_may_be_repeated(cloud):
    cloud.put("project", {NAME: "ACTIVE", "another": "ACTIVE"})
    jobs = [sending.job("v5e:4x4"), sending.job("v5e:4x4", name="flat-s0")]
    for _ in range(2):
        ENGINE.cancel(jobs, sending.options(ENGINE, *WHERE))
    assert actions(cloud) == ["list", "delete", "list"]
    assert cloud.get("project") == {"another": "ACTIVE"}


def test_a_canary_in_the_environment_appears_nowhere(
    cloud, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    jobs = [sending.job("v5e:4x4")]
    send(tmp_path, jobs)
    cloud.add("gcloud", "sys.exit('no project')")
    with pytest.raises(SparsecodError, match="no project") as failed:
        ENGINE.query(jobs, sending.options(ENGINE, *WHERE))
    written = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) >= 4
    for text in (*written, *capfd.readouterr(), str(failed.value)):
        assert CANARY not in text


def test_a_comma_in_a_path_is_refused_as_gcloud_would_split_it(cloud, tmp_path):
    (tmp_path / "a,b").mkdir()
    with pytest.raises(ConfigError, match="gcloud takes no comma in a path"):
        send(tmp_path / "a,b", [sending.job("v5e:4x4")])
    assert actions(cloud) == ["list"]


# ---- gcloud's own linter on the commands


def lint(commands, tmp_path):
    """What gcloud finds wrong with commands, by their text.

    It runs without anyone's configuration.
    """
    file = tmp_path / "commands.json"
    file.write_text(json.dumps([{"command_string": command} for command in commands]))
    own = {
        "PATH": PATH,
        "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
    }
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}"],
        env=os.environ | own,
        check=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    results = json.loads(done.stdout)
    assert len(results) == len(set(commands))
    return {
        result["command_string"]: result["error_message"]
        for result in results
        if not result["success"]
    }


needs_gcloud = pytest.mark.skipif(
    not shutil.which("gcloud"), reason="gcloud is not installed"
)


@needs_gcloud
def test_gcloud_knows_every_command_that_is_sent(cloud, tmp_path):
    account = "me@project.iam.gserviceaccount.com"
    options = {
        "v4:2x2x2": "--spot",
        "v5p:4x4x4*2": "--reserved",
        "v6e:8x8": "--flex=2d",
        "v5e:4x4": f"--service_account={account}",
    }
    for topology, option in options.items():
        cloud.put("project", {NAME: "SUSPENDED"})
        send(tmp_path, [sending.job(topology)], option)
    commands = {shlex.join(["gcloud", *call]) for call in cloud.calls("gcloud")}
    assert len(commands) == 6
    for code_package in (IN_IMAGE, AS_WHEEL):
        on_host = described(code_package=code_package)["commands"]
        commands |= {shlex.join(words) for words in on_host if words[0] == "gcloud"}
    assert len(commands) == 8
    assert lint(sorted(commands), tmp_path) == {}
    wrong = "gcloud compute tpus queued-resources list --zone=z --no-such-flag"
    assert lint([wrong], tmp_path)


@needs_gcloud
def test_gcloud_knows_every_command_of_the_walk_through(tmp_path):
    commands = []
    joined = DOCS.read_text().replace("\\\n", " ")
    for line in joined.splitlines():
        if line.startswith("gcloud "):
            command = re.sub(r"\$([A-Z]+)", lambda match: match[1].lower(), line)
            commands.append(command.strip())
    assert len(commands) >= 15
    assert lint(commands, tmp_path) == {}


# ---- the script of a host, run for real; what it reaches outside is played


CURL = """
answers = json.load(open(folder + "/metadata"))
name = words[-1].rpartition("/")[2]
if name not in answers:
    sys.exit(22)
sys.stdout.write(answers[name])
"""
DOCKER = """
codes = json.load(open(folder + "/codes"))
code = codes.pop(0) if "run" in words else 0
json.dump(codes, open(folder + "/codes", "w"))
names = ("SPARSECOD_HOST", "SPARSECOD_SLICE", "HOME")
environment = {name: os.environ[name] for name in names}
json.dump(environment, open(folder + "/environment", "w"))
sys.exit(code)
"""


def boot(recorder, wanted, codes=(0,), **metadata):
    """Boots a host whose container ends with these codes, one after the other."""
    usual = {
        "agent-worker-number": "0",
        "tpu-env": "ZONE: 'z'\n",
        "sparsecod-commands": json.dumps(wanted),
    }
    recorder.put("metadata", usual | metadata)
    recorder.put("codes", list(codes))
    recorder.add("curl", CURL)
    recorder.add("docker", DOCKER)
    recorder.add("gcloud")
    recorder.add("sleep")
    return subprocess.run(
        ["bash", tpu_vm.HOST_SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def runs(recorder):
    return [call for call in recorder.calls("docker") if call[0] == "run"]


def test_a_host_does_what_the_metadata_say_and_hostile_words_arrive_unchanged(
    recorder, tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    wanted = described(commands=((*TRAIN, *HOSTILE), (*ANALYZE, *HOSTILE)))
    done = boot(recorder, wanted)
    assert done.returncode == 0, done.stderr
    login, pull, run = (words[1:] for words in wanted["commands"])
    assert recorder.calls("gcloud") == [login]
    assert recorder.calls("docker") == [pull, run]
    assert run[-len(HOSTILE) :] == list(HOSTILE)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert recorder.get("environment") == {
        "SPARSECOD_HOST": "0",
        "SPARSECOD_SLICE": "0",
        "HOME": "/root",
    }


def test_a_host_says_which_one_of_which_slice_it_is(recorder):
    environment = (
        "ACCELERATOR_TYPE: 'v5p-128'\n"
        "MEGASCALE_NUM_SLICES: '2'\n"
        "MEGASCALE_SLICE_ID: '1'\n"
    )
    boot(recorder, described(), **{"agent-worker-number": "15", "tpu-env": environment})
    assert recorder.get("environment") == {
        "SPARSECOD_HOST": "15",
        "SPARSECOD_SLICE": "1",
        "HOME": "/root",
    }


def test_the_script_of_a_host_has_the_codes_that_are_final():
    """It meets no Python of ours, so it can't ask for them."""
    script = (Path(tpu_vm.__file__).parent / "tpu_vm_host.sh").read_text()
    pattern = r"^ *(\d[\d |]*)\) ;; # would end so again$"
    (line,) = re.findall(pattern, script, re.MULTILINE)
    assert {int(code) for code in line.split("|")} == {*errors.FINAL, Fenced.exit_code}


@pytest.mark.parametrize("code", [2, 70, 76, 78])
def test_a_host_does_not_repeat_what_would_end_so_again(code, recorder):
    done = boot(recorder, described(), [code, 0])
    assert (done.returncode, len(runs(recorder))) == (code, 1)
    assert f"docker ended with {code}" in done.stderr


def test_a_host_repeats_failures_up_to_the_maximum_and_preemptions_without_counting(
    recorder,
):
    wanted = described(options=("--max_restarts=2",))
    done = boot(recorder, wanted, [75, 1, 75, 75, 137, 75, 0])
    assert (done.returncode, len(runs(recorder))) == (0, 7)


def test_a_host_gives_up_after_the_maximum(recorder):
    done = boot(recorder, described(options=("--max_restarts=2",)), [1, 134, 137, 0])
    assert (done.returncode, len(runs(recorder))) == (137, 3)


def test_a_host_without_commands_says_so(recorder):
    done = boot(recorder, {}, **{"sparsecod-commands": ""})
    assert done.returncode != 0
    assert "the metadata has no commands" in done.stderr


@pytest.mark.skipif(
    not shutil.which("shellcheck"), reason="shellcheck is not installed"
)
def test_shellcheck_finds_nothing_in_the_script():
    found = subprocess.run(
        ["shellcheck", "--severity=style", tpu_vm.HOST_SCRIPT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, "")
