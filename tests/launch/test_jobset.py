"""JobSets are valid, agree with xpk and follow the exit codes.

They have no privileges, no secrets and no shell.
"""

import copy
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import kubernetes_validate
import pytest
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

import sparsecod_jax
from launch import jobset
from sparsecod_jax.data.prepare import Request, prepare
from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.launching import jobset_manifest, launching
from sparsecod_jax.storage import files
from tests.support import emulator, process, sending, study_files, xpk
from tests.support.compilers import needs_tpu_compiler
from tests.support.sending import ANALYZE, AS_WHEEL, HOSTILE, IN_IMAGE, TRAIN

ENGINE = jobset.JobSet()
ON_TPU = ["v4:2x2x2", "v5e:2x2", "v5e:4x4", "v5p:4x4x4", "v5p:4x4x4*2", "v6e:8x8"]
ON_GPU = ["h100:8", "h100:4x8"]
NAME = f"deep-s0-{launching.study_id(sending.options(ENGINE))}"
CANARY = "CANARY-4f1c"
LACKS = [
    package
    for package in ("gcsfs", "gcp_storage_emulator")
    if importlib.util.find_spec(package) is None
]


def rendered(topology="v5p:4x4x4", commands=(TRAIN,), *words, code_package=IN_IMAGE):
    args = sending.options(ENGINE, *words)
    contents = ENGINE.render([sending.job(topology, commands)], code_package, args)
    assert list(contents) == ["deep-s0.json"]
    return json.loads(contents["deep-s0.json"])


def job_of(manifest):
    [replicated] = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod_of(manifest):
    return job_of(manifest)["template"]["spec"]


def check(manifest):
    """Raises where a key or a value is none of Kubernetes' or of JobSet's.

    Their models drop what they don't know.
    """
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "x"},
        "spec": job_of(manifest),
    }
    kubernetes_validate.validate(job, "1.33", strict=True)
    model = JobsetV1alpha2JobSet.from_dict(manifest)
    assert model
    assert model.to_dict() == manifest


@pytest.mark.parametrize("code_package", [IN_IMAGE, AS_WHEEL], ids=["image", "wheel"])
@pytest.mark.parametrize("topology", [*ON_TPU, *ON_GPU])
def test_manifests_are_valid_to_the_last_key(topology, code_package):
    options = (
        "--queue=team",
        "--service_account=trainer",
        "--secret=HF_TOKEN=hub/token",
        "--node_selector=cloud.google.com/gke-spot=true",
    )
    check(rendered(topology, (TRAIN, ANALYZE), *options, code_package=code_package))
    check(rendered(topology, code_package=code_package))


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "failurePolicy"),
        ("spec", "replicatedJobs", 0),
        ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec"),
    ],
)
def test_a_misspelled_key_would_be_found(path):
    manifest = rendered()
    part = manifest
    for key in path:
        part = part[key]
    part["maxRestart"] = 3
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        check(manifest)


@pytest.mark.parametrize("topology", xpk.TYPES)
def test_nodes_chips_and_pods_are_those_of_xpk(topology):
    golden = json.loads(xpk.GOLDEN.read_text())
    assert xpk.of_manifest(rendered(topology)) == golden["facts"][topology]


@pytest.mark.skipif(
    not shutil.which("xpk"),
    reason="xpk is not on PATH: pip install xpk in an environment of its own",
)
@pytest.mark.parametrize(
    "topology", ["v4:2x2x2", "v5e:4x4", "v5p:4x4x4*2", "v6e:8x8", "v6e:2x4"]
)
def test_xpk_still_renders_its_golden_facts(topology):
    golden = json.loads(xpk.GOLDEN.read_text())
    assert xpk.facts(topology) == golden["facts"][topology]
    assert " ".join(xpk.command(topology, "FILE")) == golden["commands"][topology]


def test_gpus_are_requested_by_hosts_whose_processes_get_a_number():
    manifest = rendered("h100:4x8", (TRAIN, ANALYZE))
    [replicated] = manifest["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    assert job_of(manifest)["parallelism"] == 4
    pod = pod_of(manifest)
    selector = {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert pod["nodeSelector"] == selector
    [run] = pod["containers"]
    assert run["resources"] == {"limits": {"nvidia.com/gpu": "8"}}
    flags = [
        f"--coordinator={NAME}-r-0-0.{NAME}:8476",
        "--process_index=$(SPARSECOD_HOST)",
    ]
    train = run["command"][4 : run["command"].index("--then")]
    assert train == [*TRAIN, "--process_count=4", *flags]
    assert {"name": "shared", "mountPath": "/dev/shm"} in run["volumeMounts"]
    assert {"name": "shared", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
    [alone] = pod_of(rendered("h100:8"))["containers"]
    assert alone["command"][4:] == [*TRAIN, "--process_count=1"]


@pytest.mark.parametrize(
    ("topology", "expected"),
    [("v5p:4x4x4", True), ("v5e:2x2", False), ("h100:4x8", False)],
)
def test_the_command_of_one_host_waits_for_no_other(topology, expected):
    [run] = pod_of(rendered(topology, (TRAIN, ANALYZE)))["containers"]
    assert run["command"][-len(ANALYZE) :] == list(ANALYZE)
    assert ("TPU_PROCESS_BOUNDS=1,1,1" in run["command"]) == expected


@pytest.mark.parametrize(
    ("topology", "expected"),
    [("v5p:4x4x4*2", True), ("v5p:2x2x1", False), ("h100:4x8", False)],
)
def test_pods_of_a_slice_have_its_nodes_for_themselves(topology, expected):
    annotations = rendered(topology)["metadata"]["annotations"]
    assert ("alpha.jobset.sigs.k8s.io/exclusive-topology" in annotations) == expected


def test_what_was_sent_is_recorded_and_kueue_asked_only_where_wanted():
    labels = rendered("v5e:4x4", (TRAIN,), "--queue=team")["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "team"
    metadata = rendered("v5e:2x2", code_package=AS_WHEEL)["metadata"]
    assert list(metadata["labels"]) == ["sparsecod-study"]
    assert metadata["annotations"] == {
        "sparsecod/commit": sending.COMMIT,
        "sparsecod/dirty": "false",
        "sparsecod/workdir": "gs://bucket/study/runs/deep-s0",
        "sparsecod/wheel-sha256": sending.SHA256,
    }


def fate(manifest, code, *, evicted=False):
    """What Kubernetes and JobSet do about a pod that ended with `code`.

    As their documents have it.
    """
    reason, message = job_failure(job_of(manifest), code, evicted)
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        is_matched = any(re.search(pattern, message) for pattern in patterns)
        if reason in rule["onJobFailureReasons"] and is_matched:
            return rule["action"]
    return "RestartJobSet"


def job_failure(job, code, evicted):
    """Reason and message of a Job with such a pod, by the first rule that matches it."""
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes")
        matched = f"matching {rule['action']} rule at index {index}"
        if codes and codes["operator"] == "In" and code in codes["values"]:
            container = f"Container {codes['containerName']} for pod default/x"
            message = f"{container} failed with exit code {code} {matched}"
            return "PodFailurePolicy", message
        if "onPodConditions" in rule and evicted:
            message = f"Pod default/x has condition DisruptionTarget {matched}"
            return "PodFailurePolicy", message
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def test_exit_codes_end_a_run_or_restart_it_as_the_contract_says():
    manifest = rendered("v5p:4x4x4", (TRAIN,), "--max_restarts=5")
    preempted = "RestartJobSetAndIgnoreMaxRestarts"
    for code in (2, 70, 76, 78):
        assert fate(manifest, code) == "FailJobSet"
    for code in (1, 124, 134, 137, 143):
        assert fate(manifest, code) == "RestartJobSet"
    assert fate(manifest, 75) == preempted
    assert fate(manifest, 75, evicted=True) == preempted
    assert fate(manifest, 137, evicted=True) == preempted
    assert fate(manifest, 70, evicted=True) == "FailJobSet"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 5
    assert job_of(manifest)["backoffLimit"] == 0
    assert pod_of(manifest)["restartPolicy"] == "Never"


@pytest.mark.parametrize("code_package", [IN_IMAGE, AS_WHEEL], ids=["image", "wheel"])
@pytest.mark.parametrize("topology", ["v5e:4x4", "h100:8"])
def test_pods_have_no_privileges_and_no_token_of_the_cluster(topology, code_package):
    pod = pod_of(rendered(topology, code_package=code_package))
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all("hostPath" not in volume for volume in pod["volumes"])
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        security = container["securityContext"]
        assert security["privileged"] is False
        assert security["allowPrivilegeEscalation"] is False
        capabilities = security["capabilities"]
        assert capabilities["drop"] == ["ALL"]
        if topology.startswith("v"):
            assert capabilities["add"] == ["SYS_RESOURCE"]
            assert security["runAsUser"] == 0
        else:
            assert "add" not in capabilities
            assert security["runAsUser"] == jobset_manifest.USER
            assert security["runAsNonRoot"] is True


def test_a_wheel_is_fetched_checked_and_installed_with_the_constraints():
    pod = pod_of(rendered(code_package=AS_WHEEL))
    fetch, install = pod["initContainers"]
    folder = f"/code/{sending.SHA256[:16]}"
    source = os.path.dirname(sending.WHEEL)
    copy = ["gcloud", "storage", "cp", source, "/code", "--recursive"]
    assert fetch["command"] == copy
    wheel = f"{folder}/sparsecod_jax-0.1.0%2Bg{sending.COMMIT}-py3-none-any.whl"
    assert install["command"][-2:] == [
        f"--constraint={folder}/constraints/py311.txt",
        f"sparsecod-jax[tpu,gcs] @ file://{wheel}#sha256={sending.SHA256}",
    ]
    [run] = pod["containers"]
    assert run["workingDir"] == folder
    assert {"name": "PYTHONPATH", "value": "/code/site"} in run["env"]
    assert {"name": "PYTHONSAFEPATH", "value": "1"} in run["env"]
    assert {"name": "code", "mountPath": "/code"} in run["volumeMounts"]


def expanded(word, variables):
    """A word of a command as the kubelet expands it.

    $(NAME) becomes its value if it has one, $$ a dollar.
    """

    def value(match):
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^()]*)\)", value, word)


@pytest.mark.parametrize("topology", ["v5p:4x4x4", "h100:1"])
def test_hostile_values_arrive_unchanged_and_do_nothing(topology, tmp_path):
    script = "import json, sys; open(sys.argv[1], 'w').write(json.dumps(sys.argv[2:]))"
    commands = [
        (sys.executable, "-c", script, str(tmp_path / name), *HOSTILE)
        for name in ("train.json", "analyze.json")
    ]
    manifest = rendered(topology, tuple(commands))
    check(manifest)
    [run] = pod_of(manifest)["containers"]
    words = [
        expanded(word, {"SPARSECOD_HOST": "0", "HOME": "/root"})
        for word in run["command"]
    ]
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    root = os.path.dirname(os.path.dirname(sparsecod_jax.__file__))
    environment = os.environ | {"PYTHONPATH": root}
    command = [sys.executable, *words[1:]]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    trained, analyzed = (
        json.loads((tmp_path / name).read_text())
        for name in ("train.json", "analyze.json")
    )
    assert trained[: len(HOSTILE)] == list(HOSTILE) == analyzed
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--secret=HF_TOKEN",), "takes names, never a value"),
        ((f"--secret=HF_TOKEN={CANARY}",), "takes names, never a value"),
        (("--secret=A B=hub/token",), "takes names, never a value"),
        (("--node_selector=spot",), "is not LABEL=VALUE"),
        (("--max_restarts=-1",), "is below 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message) as refused:
        rendered("v5e:4x4", (TRAIN,), *options)
    assert CANARY not in str(refused.value)


def test_runs_that_cannot_be_pods_are_refused():
    long = sending.job("v5p:8x8x8*11", name="a" * 40)
    with pytest.raises(ConfigError, match="shorten the name of its arm"):
        ENGINE.render([long], IN_IMAGE, sending.options(ENGINE))
    with pytest.raises(ConfigError, match="several slices must have several hosts"):
        rendered("v5e:2x2*2")
    with pytest.raises(ConfigError, match="is no slice that exists"):
        rendered("v5e:1x1")
    with pytest.raises(ConfigError, match="the word --then"):
        rendered("v5e:4x4", ((*TRAIN, "--then"),))


def test_the_longest_name_of_a_run_fits_a_large_pod():
    job = sending.job("v5p:4x4x4", name="a" * 40)
    ENGINE.render([job], IN_IMAGE, sending.options(ENGINE))


def test_the_same_study_is_rendered_to_the_same_bytes():
    jobs = [sending.job("v5p:4x4x4", name=name) for name in ("deep-s0", "flat-s0")]
    first, second = (
        ENGINE.render(copy.deepcopy(jobs), AS_WHEEL, sending.options(ENGINE))
        for _ in range(2)
    )
    assert first == second
    assert list(first) == ["deep-s0.json", "flat-s0.json"]


# A cluster that knows what was created: `get` answers it, `create` and `delete` change it.
KUBECTL = """
cluster = json.load(open(folder + "/cluster"))
if "get" in words:
    print(json.dumps({"items": list(cluster.values())}))
elif "create" in words:
    option = next(word for word in words if word.startswith("--filename="))
    made = json.load(open(option.removeprefix("--filename=")))
    if made["metadata"]["name"] in cluster:
        sys.exit("already exists")
    cluster[made["metadata"]["name"]] = {"metadata": made["metadata"], "status": {}}
elif "delete" in words:
    names = [word for word in words[words.index("delete") + 2 :] if word[0] != "-"]
    for name in names:
        if not cluster.pop(name, None) and "--ignore-not-found" not in words:
            sys.exit("not found")
json.dump(cluster, open(folder + "/cluster", "w"))
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    recorder = sending.Recorder(folder, monkeypatch)
    recorder.put("cluster", {})
    recorder.add("kubectl", KUBECTL)
    return recorder


def send(tmp_path, jobs, *words):
    sending.submit(ENGINE, tmp_path, jobs, *words)


ACTIVE = {"replicatedJobsStatus": [{"name": "r", "active": 1}]}


def condition(name):
    return {"conditions": [{"type": name, "status": "True"}]}


def test_submitting_again_creates_nothing_again(cluster, tmp_path):
    jobs = [sending.job("v5e:4x4", name=name) for name in ("deep-s0", "flat-s0")]
    send(tmp_path, jobs[:1])
    send(tmp_path, jobs)
    send(tmp_path, jobs)
    created = [call for call in cluster.calls("kubectl") if "create" in call]
    assert all("--validate=strict" in call for call in created)
    deep, flat = (call[-1] for call in created)
    assert deep == f"--filename={tmp_path / 'deep-s0.json'}"
    assert flat == f"--filename={tmp_path / 'flat-s0.json'}"
    states = ENGINE.query(jobs, sending.options(ENGINE))
    assert states == {"deep-s0": "pending", "flat-s0": "pending"}


@pytest.mark.parametrize("state", ["failed", "completed", "deleted"])
def test_a_jobset_that_is_over_is_replaced(state, cluster, tmp_path):
    jobs = [sending.job("v5e:4x4")]
    metadata = {"name": NAME}
    status = condition(state.capitalize())
    if state == "deleted":
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        status = ACTIVE
    cluster.put("cluster", {NAME: {"metadata": metadata, "status": status}})
    assert ENGINE.query(jobs, sending.options(ENGINE)) == {"deep-s0": state}
    send(tmp_path, jobs, "--context=far", "--namespace=team")
    where = ["--namespace=team", "--context=far"]
    calls = cluster.calls("kubectl")[1:]
    assert [call[:2] for call in calls] == [where] * 3
    assert [call[2] for call in calls] == ["get", "delete", "create"]
    assert cluster.get("cluster")[NAME]["status"] == {}


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ({}, "pending"),
        (ACTIVE, "running"),
        ({"replicatedJobsStatus": [{"name": "r", "active": 0}]}, "pending"),
        (condition("Suspended"), "pending"),
        (condition("Suspended") | ACTIVE, "pending"),
        ({"conditions": [{"type": "Failed", "status": "False"}]}, "pending"),
    ],
)
def test_the_state_of_a_live_run_keeps_it_from_being_sent(
    status, word, cluster, tmp_path
):
    cluster.put("cluster", {NAME: {"metadata": {"name": NAME}, "status": status}})
    jobs = [sending.job("v5e:4x4")]
    assert ENGINE.query(jobs, sending.options(ENGINE)) == {"deep-s0": word}
    send(tmp_path, jobs)
    for call in cluster.calls("kubectl"):
        assert "create" not in call
        assert "delete" not in call


def test_cancel_deletes_the_runs_of_this_study_alone(cluster):
    jobsets = {name: {"metadata": {"name": name}} for name in (NAME, "another")}
    cluster.put("cluster", jobsets)
    for _ in range(2):
        ENGINE.cancel([sending.job("v5e:4x4")], sending.options(ENGINE))
        assert list(cluster.get("cluster")) == ["another"]


def test_a_canary_among_the_secrets_appears_nowhere(
    cluster, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    jobs = [sending.job("v5e:4x4")]
    send(tmp_path, jobs, "--secret=HF_TOKEN=hub/token")
    cluster.add("kubectl", "sys.exit('no cluster')")
    message = r"`kubectl .*` failed with 1: no cluster"
    with pytest.raises(SparsecodError, match=message) as failed:
        ENGINE.query(jobs, sending.options(ENGINE))
    written = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) >= 3
    for text in (*written, *capfd.readouterr(), str(failed.value)):
        assert CANARY not in text
    [run] = pod_of(json.loads((tmp_path / "deep-s0.json").read_text()))["containers"]
    reference = {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert {"name": "HF_TOKEN", "valueFrom": reference} in run["env"]


@pytest.mark.slow
@needs_tpu_compiler
@pytest.mark.skipif(bool(LACKS), reason=f"not installed: {', '.join(LACKS)}")
def test_a_study_in_a_bucket_is_planned_sent_once_and_cancelled(
    cluster, corpus, tmp_path, capsys
):
    with emulator.running(process.free_port()):
        request = Request(str(corpus), vocab_size=300, validation_fraction=0.2)
        prepare(request, "gs://bucket/data")
        spec = study_files.write(tmp_path, "gs://bucket/data", study_files.TWO)
        study = [f"--sweep={spec}", "--workdir=gs://bucket/study"]
        how = ["--topology=v5e:2x2", "--image=registry/image@sha256:0", "--allow_dirty"]
        for _ in range(2):
            assert launching.main(ENGINE, ["submit", *study, *how]) == 0
        created = [call for call in cluster.calls("kubectl") if "create" in call]
        assert len(created) == 2
        assert capsys.readouterr().out.splitlines()[-2:] == [
            "flat-s0  not sent: pending",
            "deep-s0  not sent: pending",
        ]
        sent = cluster.get("cluster")
        folder = files.absolute("gs://bucket/study/jobset")
        manifests = [json.loads(file.read_text()) for file in folder.glob("*.json")]
        names = [manifest["metadata"]["name"] for manifest in manifests]
        assert sorted(names) == sorted(sent)
        for manifest in manifests:
            check(manifest)
        assert launching.main(ENGINE, ["status", *study]) == 0
        assert capsys.readouterr().out.count("scheduler: pending") == 2
        assert launching.main(ENGINE, ["collect", *study]) == 0
        assert "0 of 2 runs are done" in capsys.readouterr().out
        assert launching.main(ENGINE, ["cancel", *study]) == 0
        assert cluster.get("cluster") == {}


def test_without_kubectl_the_fix_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no kubectl here: install it"):
        ENGINE.query([sending.job("v5e:4x4")], sending.options(ENGINE))
