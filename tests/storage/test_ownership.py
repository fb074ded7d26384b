"""Locks on folders, also where there are none."""

import errno
import fcntl
import os

import pytest
from etils import epath

from sparsecod_jax.errors import Fenced
from sparsecod_jax.storage.ownership import is_locked, locked


def test_a_lock_is_seen_and_kept(tmp_path):
    folder = epath.Path(tmp_path)
    assert not is_locked(folder)
    with locked(folder):
        assert is_locked(folder)
        with (
            pytest.raises(Fenced, match="another process is at work in"),
            locked(folder),
        ):
            pass
    assert not is_locked(folder)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_treated_as_an_object_store(
    tmp_path, monkeypatch, number
):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(epath.Path(tmp_path)):
        assert not is_locked(epath.Path(tmp_path))


def test_a_disk_that_fails_is_told(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        pytest.raises(OSError, match="Input/output error"),
        locked(epath.Path(tmp_path)),
    ):
        pass
