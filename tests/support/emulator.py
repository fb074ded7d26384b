"""Google Cloud Storage on this machine: `python emulator.py PORT` serves an empty bucket named "bucket" from memory."""

import contextlib
import http
import http.server
import os
import socket
import subprocess
import sys
import time
import unittest.mock
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def running(port: int) -> Iterator[None]:
    """An emulator in a process of its own, which this process and its children use while the context lasts."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(port)], stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    environment = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        "GOOGLE_CLOUD_PROJECT": "p",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google itself what kind of bucket it is
    }
    try:
        _wait(process, port)
        with unittest.mock.patch.dict(os.environ, environment):
            yield
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen, port: int) -> None:
    deadline = time.time() + 30
    while True:
        assert process.poll() is None, "the emulator ended"
        assert time.time() < deadline, "the emulator does not answer"
        with (
            contextlib.suppress(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", port)),
        ):
            return
        time.sleep(0.02)


def _serve(port: int) -> None:
    from gcp_storage_emulator import server

    for _, methods in server.HANDLERS:
        methods.update(
            {method: _with_generations(handler) for method, handler in methods.items()}
        )
    http.server.HTTPServer.request_queue_size = (
        128  # connections that wait, of many threads
    )
    server.create_server(
        "127.0.0.1", port, in_memory=True, default_bucket="bucket"
    ).run()


def _with_generations(handler) -> Any:
    """What the emulator lacks of Google's service: it names an object's generation, and a request may depend on that."""

    def handle(request, response, storage):
        if request.method == "POST" and "/upload/" in request.path:
            name = (
                request.query["name"][0]
                if "name" in request.query
                else request.data["meta"]["name"]
            )
        else:
            name = request.params.get("object_id")
        objects = storage.objects.get(request.params.get("bucket_name"), {})
        generation = objects.get(name, {}).get("generation", "0")
        if request.query.get("ifGenerationMatch", [generation]) != [generation]:
            response.status = http.HTTPStatus.PRECONDITION_FAILED
        elif name in objects and request.query.get("ifGenerationNotMatch") == [
            generation
        ]:
            response.status = http.HTTPStatus.NOT_MODIFIED
        else:
            response["x-goog-generation"] = generation
            handler(request, response, storage)

    return handle


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
