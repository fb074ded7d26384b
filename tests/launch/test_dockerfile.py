"""The image is made of files of this checkout, runs without privileges, from a pinned base."""

import re
from pathlib import Path

from sparsecod_jax.launching import jobset_manifest

ROOT = Path(__file__).parents[2]
LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()


def arguments(instruction):
    return [
        line.removeprefix(instruction).split()
        for line in LINES
        if line.startswith(f"{instruction} ")
    ]


def test_what_is_copied_is_here_and_passed_to_the_builder():
    ignored = (ROOT / ".dockerignore").read_text().split()
    sources = [source for *sources, _ in arguments("COPY") for source in sources]
    assert len(sources) >= 5
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source.split('/')[0]}" in ignored


def test_its_base_can_be_pinned_and_its_user_is_the_one_that_pods_expect():
    assert arguments("FROM") == [["${BASE}"]]
    assert ["EXTRA=tpu"] in arguments("ARG")
    assert arguments("USER")[-1] == [str(jobset_manifest.USER)]
