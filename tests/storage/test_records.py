"""JSON records come back as they were written, and damage to them is noticed."""

import pytest
from etils import epath

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.storage import records


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path)


@pytest.mark.parametrize(
    "content", [b'{"seed": ', b"", b'{"seed": "\xff"}', b"[" * 100_000]
)
def test_a_damaged_file_is_named(folder, content):
    (folder / "config.json").write_bytes(content)
    problem = r"/config\.json is not JSON .*"
    remedy = "restore it from a copy, or start in another --workdir"
    with pytest.raises(ConfigError, match=f"{problem}: {remedy}"):
        records.read_json(folder / "config.json")


def test_numbers_that_json_lacks_become_null():
    values = {
        "a": [1.0, float("nan"), (float("inf"), "nan", None)],
        "b": {"c": -0.5, "d": 3},
    }
    assert records.finite(values) == {
        "a": [1.0, None, [None, "nan", None]],
        "b": {"c": -0.5, "d": 3},
    }


RECORD = {
    "steps": 3,
    "loss": 1.5,
    "names": {"2": [1, 2.5, None], "10": "x"},
    "id": "0123456789abcdef",
}


def test_records_come_back_and_old_ones_without_a_checksum_too(folder, capsys):
    records.write_record(folder / "new.json", RECORD)
    records.write_record(folder / "numbered.json", {10: "a", 9: "b"})  # pyright: ignore[reportArgumentType]
    records.write_json(folder / "old.json", RECORD)
    assert records.read_record(folder / "new.json") == RECORD
    assert records.read_record(folder / "old.json") == RECORD
    assert records.read_record(folder / "numbered.json") == {"10": "a", "9": "b"}
    for name in ("new", "old", "absent"):
        records.warn_if_unchecked(folder / f"{name}.json")
    assert capsys.readouterr().err == (
        f"{folder} was made before checksums were recorded: "
        "its records are taken as they are\n"
    )


def test_every_flipped_bit_of_a_record_is_noticed_or_harmless(folder):
    path = folder / "final.json"
    records.write_record(path, RECORD)
    content = path.read_bytes()
    noticed = 0
    for bit in range(0, 8 * len(content), 3):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        try:
            values = records.read_record(path)
        except ConfigError:
            noticed += 1
        else:
            assert values == RECORD, f"bit {bit} changed the record in silence"
    assert noticed > 0.2 * 8 * len(content)
