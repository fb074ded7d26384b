"""A JobSet says what Kubernetes must know: valid, in agreement with xpk, true to the exit codes, without privileges, secrets or a shell."""

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
TOPOLOGIES = [
    "v4:2x2x2",
    "v5e:2x2",
    "v5e:4x4",
    "v5p:4x4x4",
    "v5p:4x4x4*2",
    "v6e:8x8",
    "h100:8",
    "h100:4x8",
]
NAME = f"deep-s0-{launching.study_id(sending.options(ENGINE))}"
CANARY = "CANARY-4f1c"
LACKS = [
    package
    for package in ("gcsfs", "gcp_storage_emulator")
    if importlib.util.find_spec(package) is None
]


def rendered(topology="v5p:4x4x4", commands=(TRAIN,), *words, code_package=IN_IMAGE):
    contents = ENGINE.render(
        [sending.job(topology, commands)], code_package, sending.options(ENGINE, *words)
    )
    assert list(contents) == ["deep-s0.json"]
    return json.loads(contents["deep-s0.json"])


def job_of(manifest):
    [replicated] = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod_of(manifest):
    return job_of(manifest)["template"]["spec"]


def check(manifest):
    """Raises where a key or a value is none of Kubernetes' or of JobSet's; their models drop what they don't know."""
    kubernetes_validate.validate(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "x"},
            "spec": job_of(manifest),
        },
        "1.33",
        strict=True,
    )
    model = JobsetV1alpha2JobSet.from_dict(manifest)
    assert model
    assert model.to_dict() == manifest


@pytest.mark.parametrize("code_package", [IN_IMAGE, AS_WHEEL], ids=["image", "wheel"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
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
    place = manifest
    for step in path:
        place = place[step]
    place["maxRestart"] = 3
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        check(manifest)


@pytest.mark.parametrize("topology", xpk.TYPES)
def test_nodes_chips_and_pods_are_those_of_xpk(topology):
    assert (
        xpk.of_manifest(rendered(topology))
        == json.loads(xpk.GOLDEN.read_text())["facts"][topology]
    )


@pytest.mark.skipif(
    not shutil.which("xpk"),
    reason="xpk is not on PATH: pip install xpk in an environment of its own",
)
@pytest.mark.parametrize(
    "topology", ["v4:2x2x2", "v5e:4x4", "v5p:4x4x4*2", "v6e:8x8", "v6e:2x4"]
)
def test_what_xpk_said_it_still_says(topology):
    golden = json.loads(xpk.GOLDEN.read_text())
    assert xpk.facts(topology) == golden["facts"][topology]
    assert " ".join(xpk.command(topology, "FILE")) == golden["commands"][topology]


def test_gpus_are_asked_for_by_hosts_and_told_which_process_they_are():
    manifest = rendered("h100:4x8", (TRAIN, ANALYZE))
    assert (
        job_of(manifest)["parallelism"],
        manifest["spec"]["replicatedJobs"][0]["replicas"],
    ) == (4, 1)
    pod = pod_of(manifest)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-h100-80gb"
    }
    [run] = pod["containers"]
    assert run["resources"] == {"limits": {"nvidia.com/gpu": "8"}}
    flags = [
        f"--coordinator={NAME}-r-0-0.{NAME}:8476",
        "--process_index=$(SPARSECOD_HOST)",
    ]
    assert run["command"][4 : run["command"].index("--then")] == [
        *TRAIN,
        "--process_count=4",
        *flags,
    ]
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
    """What Kubernetes and JobSet do about a pod that ended with `code`, as their documents say."""
    reason, message = (
        "BackoffLimitExceeded",
        "Job has reached the specified backoff limit",
    )
    for index, rule in enumerate(job_of(manifest)["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes")
        matched = f"matching {rule['action']} rule at index {index}"
        if codes and codes["operator"] == "In" and code in codes["values"]:
            reason, message = (
                "PodFailurePolicy",
                f"Container {codes['containerName']} for pod default/x failed with exit code {code} {matched}",
            )
            break
        if "onPodConditions" in rule and evicted:
            reason, message = (
                "PodFailurePolicy",
                f"Pod default/x has condition DisruptionTarget {matched}",
            )
            break
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"] and any(
            re.search(pattern, message)
            for pattern in rule["onJobFailureMessagePatterns"]
        ):
            return rule["action"]
    return "RestartJobSet"


def test_exit_codes_end_a_run_or_restart_it_as_the_contract_says():
    manifest = rendered("v5p:4x4x4", (TRAIN,), "--max_restarts=5")
    assert {code: fate(manifest, code) for code in (2, 70, 76, 78)} == dict.fromkeys(
        (2, 70, 76, 78), "FailJobSet"
    )
    assert fate(manifest, 75) == "RestartJobSetAndIgnoreMaxRestarts"
    assert {fate(manifest, code) for code in (1, 124, 134, 137, 143)} == {
        "RestartJobSet"
    }
    assert (
        fate(manifest, 137, evicted=True)
        == fate(manifest, 75, evicted=True)
        == "RestartJobSetAndIgnoreMaxRestarts"
    )
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
        assert (security["privileged"], security["allowPrivilegeEscalation"]) == (
            False,
            False,
        )
        assert security["capabilities"]["drop"] == ["ALL"]
        on_tpu = topology.startswith("v")
        assert security["capabilities"].get("add", []) == (
            ["SYS_RESOURCE"] if on_tpu else []
        )
        assert (security["runAsUser"], security.get("runAsNonRoot", False)) == (
            (0, False) if on_tpu else (jobset_manifest.USER, True)
        )


def test_a_wheel_is_fetched_checked_and_installed_with_the_constraints():
    pod = pod_of(rendered(code_package=AS_WHEEL))
    fetch, install = pod["initContainers"]
    place = f"/code/{sending.SHA256[:16]}"
    assert fetch["command"] == [
        "gcloud",
        "storage",
        "cp",
        os.path.dirname(sending.WHEEL),
        "/code",
        "--recursive",
    ]
    assert install["command"][-2:] == [
        f"--constraint={place}/constraints/py311.txt",
        f"sparsecod-jax[tpu,gcs] @ file://{place}/sparsecod_jax-0.1.0%2Bg{sending.COMMIT}-py3-none-any.whl#sha256={sending.SHA256}",
    ]
    [run] = pod["containers"]
    assert run["workingDir"] == place
    assert {"name": "PYTHONPATH", "value": "/code/site"} in run["env"]
    assert {"name": "PYTHONSAFEPATH", "value": "1"} in run["env"]
    assert {"name": "code", "mountPath": "/code"} in run["volumeMounts"]


def expanded(word, variables):
    """What the kubelet makes of a word of a command: $(NAME) its value if it has one, $$ a dollar."""

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
    surroundings = os.environ | {
        "PYTHONPATH": os.path.dirname(os.path.dirname(sparsecod_jax.__file__))
    }
    subprocess.run(
        [sys.executable, *words[1:]], cwd=folder, env=surroundings, check=True
    )
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
    ENGINE.render(
        [sending.job("v5p:4x4x4", name="a" * 40)], IN_IMAGE, sending.options(ENGINE)
    )


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
    made = json.load(open(next(word for word in words if word.startswith("--filename=")).partition("=")[2]))
    if made["metadata"]["name"] in cluster:
        sys.exit("already exists")
    cluster[made["metadata"]["name"]] = {"metadata": made["metadata"], "status": {}}
elif "delete" in words:
    for name in words[words.index("delete") + 2 :]:
        if not name.startswith("-") and not cluster.pop(name, None) and "--ignore-not-found" not in words:
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


def condition(name):
    return {"conditions": [{"type": name, "status": "True"}]}


def test_submitting_again_creates_nothing_again(cluster, tmp_path):
    jobs = [sending.job("v5e:4x4", name=name) for name in ("deep-s0", "flat-s0")]
    send(tmp_path, jobs[:1])
    send(tmp_path, jobs)
    send(tmp_path, jobs)
    created = [call for call in cluster.calls("kubectl") if "create" in call]
    assert all("--validate=strict" in call for call in created)
    assert [call[-1] for call in created] == [
        f"--filename={tmp_path / name}.json" for name in ("deep-s0", "flat-s0")
    ]
    assert ENGINE.query(jobs, sending.options(ENGINE)) == {
        "deep-s0": "pending",
        "flat-s0": "pending",
    }


@pytest.mark.parametrize("state", ["failed", "completed", "deleted"])
def test_a_jobset_that_is_over_is_replaced(state, cluster, tmp_path):
    jobs = [sending.job("v5e:4x4")]
    going = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if state == "deleted" else {}
    status = (
        {"replicatedJobsStatus": [{"name": "r", "active": 1}]}
        if state == "deleted"
        else condition(state.capitalize())
    )
    cluster.put(
        "cluster", {NAME: {"metadata": {"name": NAME, **going}, "status": status}}
    )
    assert ENGINE.query(jobs, sending.options(ENGINE)) == {"deep-s0": state}
    send(tmp_path, jobs, "--context=far", "--namespace=team")
    assert [
        (call[:2], next(word for word in call if word in ("get", "delete", "create")))
        for call in cluster.calls("kubectl")[1:]
    ] == [
        (["--namespace=team", "--context=far"], verb)
        for verb in ("get", "delete", "create")
    ]
    assert cluster.get("cluster")[NAME]["status"] == {}


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ({}, "pending"),
        ({"replicatedJobsStatus": [{"name": "r", "active": 1}]}, "running"),
        ({"replicatedJobsStatus": [{"name": "r", "active": 0}]}, "pending"),
        (condition("Suspended"), "pending"),
        (
            condition("Suspended")
            | {"replicatedJobsStatus": [{"name": "r", "active": 1}]},
            "pending",
        ),
        ({"conditions": [{"type": "Failed", "status": "False"}]}, "pending"),
    ],
)
def test_what_the_cluster_says_of_a_live_run_keeps_it_from_being_sent(
    status, word, cluster, tmp_path
):
    cluster.put("cluster", {NAME: {"metadata": {"name": NAME}, "status": status}})
    jobs = [sending.job("v5e:4x4")]
    assert ENGINE.query(jobs, sending.options(ENGINE)) == {"deep-s0": word}
    send(tmp_path, jobs)
    assert not [
        call
        for call in cluster.calls("kubectl")
        if "create" in call or "delete" in call
    ]


def test_cancel_deletes_the_runs_of_this_study_alone(cluster):
    cluster.put(
        "cluster",
        {
            NAME: {"metadata": {"name": NAME}},
            "another": {"metadata": {"name": "another"}},
        },
    )
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
    with pytest.raises(
        SparsecodError, match=r"`kubectl .*` failed with 1: no cluster"
    ) as failed:
        ENGINE.query(jobs, sending.options(ENGINE))
    written = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) >= 3
    assert not any(
        CANARY in text for text in (*written, *capfd.readouterr(), str(failed.value))
    )
    [run] = pod_of(json.loads((tmp_path / "deep-s0.json").read_text()))["containers"]
    assert {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}},
    } in run["env"]


@pytest.mark.slow
@needs_tpu_compiler
@pytest.mark.skipif(bool(LACKS), reason=f"not installed: {', '.join(LACKS)}")
def test_a_study_in_a_bucket_is_planned_sent_once_and_cancelled(
    cluster, corpus, tmp_path, capsys
):
    with emulator.running(process.free_port()):
        prepare(
            Request(str(corpus), vocab_size=300, validation_fraction=0.2),
            "gs://bucket/data",
        )
        study = [
            f"--sweep={study_files.write(tmp_path, 'gs://bucket/data', study_files.TWO)}",
            "--workdir=gs://bucket/study",
        ]
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
        rendered_files = sorted(
            files.absolute("gs://bucket/study/jobset").glob("*.json")
        )
        assert [
            json.loads(file.read_text())["metadata"]["name"] for file in rendered_files
        ] == sorted(sent)
        for file in rendered_files:
            check(json.loads(file.read_text()))
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
