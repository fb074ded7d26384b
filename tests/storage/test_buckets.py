"""A bucket that can't be reached is one sentence, and soon."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.storage.buckets import LIMIT, check_reachable
from tests.support import process


class _Refusing(http.server.BaseHTTPRequestHandler):
    """A store that knows nobody."""

    def do_GET(self):
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b"Anonymous caller does not have storage.objects.list access")

    def log_message(self, format, *args):
        pass


def _point_to(monkeypatch, address: str) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid"])
def test_no_network(monkeypatch, host):
    _point_to(monkeypatch, f"http://{host}:{process.free_port()}")
    began = time.monotonic()
    with pytest.raises(
        SparsecodError,
        match=r"gs://bucket/run can't be reached \(.*\): check the network",
    ) as caught:
        check_reachable("gs://bucket/run")
    assert time.monotonic() - began < LIMIT + 3
    assert caught.value.exit_code == 1  # may work later


def test_no_credentials(monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(
            ConfigError,
            match=r"can't be used with the credentials found here .*: log in",
        ):
            check_reachable("gs://bucket/run")
        server.shutdown()


def test_a_store_that_takes_calls_and_never_answers():
    """As a whole command: nothing of it lives on."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = os.environ | {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "PYTHONPATH": str(process.ROOT),
        }
        command = [
            sys.executable,
            "-m",
            "sparsecod_jax",
            "report",
            "--workdir=gs://bucket/runs",
        ]
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=process.ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - began
    assert done.returncode == 1
    assert done.stderr == (
        "sparsecod report: gs://bucket/runs can't be reached: "
        f"no answer in {LIMIT:.0f} s, check the network and try again\n"
    )
    assert seconds < LIMIT + 10
