"""Config files: how they are read, what they refuse, and what each of them says."""

import ast
import difflib
import importlib.util
import inspect
import json
import os
import re
from pathlib import Path

import pytest

from sparsecod_jax import config
from sparsecod_jax.config.load import load_experiment
from sparsecod_jax.config.scales import SCALES
from sparsecod_jax.data.store import prepare_command
from sparsecod_jax.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SMOKE = str(ROOT / "configs/smoke.py")
GOLDEN = ROOT / "tests/golden/configs.txt"
FILES = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("--config.model.n_layer=8", 'Did you mean "n_layers" instead of "n_layer"'),
        ("--config.modle.n_layers=8", 'Did you mean "model" instead of "modle"'),
        ("--config.zzz=8", "unknown name 'zzz'"),
        (
            "--config.model.n_layers=eight",
            r"--config\.model\.n_layers=eight: invalid literal for int",
        ),
        ("--config.model.n_layers=8.5", "invalid literal for int"),
        ("--config.model.n_layers=", "invalid literal for int"),
        ("--config.model.n_layers", "Missing value for flag"),
        ("--config.optimizer.peak_lr=fast", "could not convert string to float"),
        ("--config.model.document_masking=maybe", "Non-boolean argument"),
        ("--config.model=5", "is not a dict"),
        (
            "--config.optimizer.decayed=(1,2)",
            r"optimizer\.decayed=\(1, 2\) is not a list of names",
        ),
        (
            "--config.schedule.kind=linear",
            r"schedule\.kind='linear' is not known: choose from",
        ),
        ("--config.model.n_layers=0", r"model\.n_layers is 0: set it above 0"),
    ],
)
def test_mistakes_in_overrides_are_one_sentence(override, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_experiment(SMOKE, ["--config.seed=1", override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            "c.model.n_layer = 3; return c",
            r"^model\.n_layer is not a config field: did you mean model\.n_layers\?",
        ),
        (
            "c.optimiser = 3; return c",
            r"^optimiser is not a config field: did you mean optimizer\?",
        ),
        (
            "c.model.n_layers = '3'; return c",
            r"can't be read \(line 5: TypeError: Could not override field 'n_layers'",
        ),
        (
            "c.optimizer.peak_lr = -1.0; return c",
            r"^optimizer\.peak_lr is -1\.0: set it above 0",
        ),
        (
            "return scales.base('huge')",
            "there is no scale 'huge': choose from nano, mini, paper",
        ),
        ("return None", "returns no ConfigDict"),
        ("return {'steps': 3}", "returns no ConfigDict"),
        (
            "open('/nowhere/at/all')",
            r"can't be read \(line 5: FileNotFoundError: .*'/nowhere/at/all'\): correct it",
        ),
        ("raise KeyError('width')", r"can't be read \(line 5: KeyError: 'width'\)"),
        ("raise RuntimeError", r"can't be read \(line 5: RuntimeError\)"),
        (
            "return widht",
            r"can't be read \(line 5: NameError: name 'widht' is not defined\)",
        ),
        (
            "import nowhere",
            r"can't be read \(line 5: ModuleNotFoundError: No module named 'nowhere'\)",
        ),
        ("return c c", r"can't be read \(line 5: SyntaxError: invalid syntax\)"),
        ("raise SystemExit(3)", r"can't be read \(line 5: SystemExit: 3\)"),
        ("return get_config()", r"can't be read \(line 4: RecursionError: "),
        (
            "c.data.seed = 2**70; return c",
            "data.seed is a huge number: choose a smaller one",
        ),
    ],
)
def test_mistakes_in_a_config_file_are_one_sentence(body, sentence, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from sparsecod_jax.config import scales\n\n"
        f"def get_config():\n    c = scales.base('nano')\n    {body}\n"
    )
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_experiment(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "configs/nowhere.py",
            r"^there is no config file configs/nowhere\.py: give a name or path such as ",
        ),
        ("configs/nowhere.py:nano", r"^there is no config file configs/nowhere\.py: "),
        (str(ROOT / "configs"), "^there is no config file .*/configs: "),
        (
            f"{ROOT}/configs/dense_1b.py:huge",
            "^there is no scale 'huge': choose from nano, mini, paper$",
        ),
    ],
)
def test_a_missing_file_or_scale_is_one_sentence(spec, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_experiment(spec)
    assert "\n" not in str(caught.value)


def test_overrides_change_the_file_and_the_last_one_wins():
    overrides = [
        "--config.steps=20",
        "--config.model.n_layers=7",
        "--config.steps=30",
        "--config.optimizer.decayed=('head', 'matrices')",
    ]
    experiment = load_experiment(SMOKE, overrides)
    assert (
        experiment.steps,
        experiment.model.n_layers,
        experiment.optimizer.decayed,
    ) == (30, 7, ("head", "matrices"))
    assert (
        load_experiment(SMOKE, ["--config.optimizer.peak_lr=1"]).optimizer.peak_lr
        == 1.0
    )
    assert (
        load_experiment(SMOKE).model.n_layers == 4
    )  # an override does not outlive its call


def _specs(file):
    """A config file's arguments for --config: one a scale, where it has scales."""
    module = importlib.util.spec_from_file_location(file.stem, file)
    assert module
    assert module.loader
    loaded = importlib.util.module_from_spec(module)
    module.loader.exec_module(loaded)
    scaled = inspect.signature(loaded.get_config).parameters
    return (
        [f"configs/{file.name}:{scale}" for scale in SCALES]
        if scaled
        else [f"configs/{file.name}"]
    )


SPECS = [spec for file in FILES for spec in _specs(file)]


@pytest.mark.parametrize("spec", SPECS)
def test_json_and_back(spec):
    experiment = load_experiment(str(ROOT / spec))
    assert (
        config.from_dict(json.loads(json.dumps(config.to_dict(experiment))))
        == experiment
    )


def _printed():
    """Every config at every scale, resolved, one field a line."""
    lines = []
    for spec in SPECS:
        flat = config.flatten(config.to_dict(load_experiment(str(ROOT / spec))))
        lines += [
            f"[{spec}]",
            *(f"{name} = {json.dumps(value)}" for name, value in flat.items()),
            "",
        ]
    return "\n".join(lines)


def test_config_files_resolve_to_the_golden_text():
    printed = _printed()
    if os.environ.get("SPARSECOD_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(printed)
    golden = GOLDEN.read_text() if GOLDEN.exists() else ""
    difference = "\n".join(
        difflib.unified_diff(
            golden.splitlines(), printed.splitlines(), "golden", "now", n=0, lineterm=""
        )
    )
    command = (
        f"SPARSECOD_UPDATE_GOLDEN=1 python -m pytest {Path(__file__).relative_to(ROOT)}"
    )
    assert printed == golden, (
        "a config changed; if that is meant, write the golden text again "
        f"with `{command}`:\n{difference}"
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_docstrings_say_command_hardware_run_time_and_result(file):
    """Its commands are those that the file needs: data and a run of each scale."""
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    text = text.replace("\\\n", "")  # long commands go over several lines
    for label in ("Command:", "Hardware:", "Run time:", "Result:"):
        assert re.search(rf"^{label} +\S", text, re.MULTILINE), (
            f"{file.name} has no line {label}"
        )
    assert not re.search(r"(TIME|RESULT|TODO)\b", text)
    specs = _specs(file)
    assert re.findall(r"sparsecod train --config=(\S+) --workdir=\S+", text) == specs
    for spec in specs:
        assert prepare_command(load_experiment(str(ROOT / spec))) in " ".join(
            text.split()
        ), f"{file.name} lacks the data of {spec}"


@pytest.mark.parametrize(
    "spec", ["dense_1b:nano", "dense_1b.py:nano", "configs/dense_1b.py:nano"]
)
def test_configs_of_the_package_are_known_by_name_anywhere(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = load_experiment(f"{ROOT}/configs/dense_1b.py:nano")
    assert load_experiment(spec) == expected


def test_a_file_that_is_there_comes_before_one_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "configs" / "smoke.py").read_text()
    changed = text.replace("config.steps = 160", "config.steps = 161")
    (tmp_path / "smoke.py").write_text(changed)
    assert load_experiment("smoke.py").steps == 161
    assert load_experiment("smoke").steps == 160


@pytest.mark.parametrize(
    "spec", ["depth:nano", "other/dense_1b.py", "../dense_1b", ":nano", "dense_1b.txt"]
)
def test_other_places_hold_no_config_of_the_package(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^there is no config file "):
        load_experiment(spec)


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("from sparsecod_jax import scales", "sparsecod_jax.config.scales"),
        ("from sparsecod_jax import config_file", "sparsecod_jax.config.load"),
        ("from sparsecod_jax.sweep import house", "sparsecod_jax.study"),
        ("import sparsecod_jax.sweep.study", "sparsecod_jax.study"),
    ],
)
def test_files_of_earlier_versions_learn_where_modules_went(line, module, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"{line}\n\ndef get_config():\n    return None\n")
    with pytest.raises(ConfigError, match=rf"line 1: .*Error: .*: it is now {module}"):
        load_experiment(str(file))
