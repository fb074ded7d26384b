"""Google Cloud Storage on this machine.

`python emulator.py PORT` serves an empty bucket named "bucket" from memory.
"""

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
    """An emulator in a process of its own.

    This process and its children use it while the context lasts.
    """
    command = [sys.executable, __file__, str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    environment = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        "GOOGLE_CLOUD_PROJECT": "p",
        # It would ask Google itself what kind of bucket it is.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
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
        for method, handler in methods.items():
            methods[method] = _with_generations(handler)
    # Connections that wait: many threads make some.
    http.server.HTTPServer.request_queue_size = 128
    emulator = server.create_server(
        "127.0.0.1", port, in_memory=True, default_bucket="bucket"
    )
    emulator.run()


def _with_generations(handler) -> Any:
    """Generations of objects, which the emulator lacks of Google's service.

    Answers name the generation, and a request may depend on it.
    """

    def handle(request, response, storage):
        name = _object_name(request)
        objects = storage.objects.get(request.params.get("bucket_name"), {})
        generation = objects.get(name, {}).get("generation", "0")
        wanted = request.query.get("ifGenerationMatch", [generation])
        unwanted = request.query.get("ifGenerationNotMatch")
        if wanted != [generation]:
            response.status = http.HTTPStatus.PRECONDITION_FAILED
        elif name in objects and unwanted == [generation]:
            response.status = http.HTTPStatus.NOT_MODIFIED
        else:
            response["x-goog-generation"] = generation
            handler(request, response, storage)

    return handle


def _object_name(request) -> str | None:
    if request.method != "POST" or "/upload/" not in request.path:
        return request.params.get("object_id")
    if "name" in request.query:
        return request.query["name"][0]
    return request.data["meta"]["name"]


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
