"""Tests of flags, ids and names: plain values are normalised, and others are refused with the value."""

import pytest

from dupr_tf.values import exceeds, read_flag, read_id, read_name, read_text


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        *[(read_flag, value, False) for value in (None, 0, 0.0, False, "0", "", "False", " no ", "off")],
        *[(read_flag, value, True) for value in (1, 1.0, True, "1", "true", "YES", "on")],
        *[(read_id, value, 7) for value in (7, 7.0, "7", " 7\n", "\ufeff7")],
        *[(read_id, value, value) for value in ("07", "-7", "a.jpg", "9" * 30)],
        (read_name, " stop sign\r", "stop sign"),
        (read_name, "\ufeffvoid", "void"),
        (read_name, 5, "5"),
        (read_text, "\ufeffroad\ncar\n".encode(), "road\ncar"),
        (read_text, "road\ncar\n".encode("utf-16"), "road\ncar"),
    ],
)
def test_plain_values_are_normalised(read, value, expected):
    received = read(value)
    assert received == expected and type(received) is type(expected)


@pytest.mark.parametrize(
    ("read", "value"),
    [
        *[(read_flag, value) for value in (2, -1, "2", "maybe", [], {}, float("nan"))],
        *[(read_id, value) for value in (None, "", " ", True, 1.5, float("inf"), [1])],
        *[(read_name, value) for value in (None, "", "\ufeff", True, 1.5, ["a"])],
    ],
)
def test_other_values_are_refused_with_their_type(read, value):
    with pytest.raises(ValueError, match="expected") as caught:
        read(value)
    assert repr(value) in str(caught.value)


def test_invalid_unicode_is_refused():
    with pytest.raises(ValueError, match="decode"):
        read_text(b"\xff\xff\xff")


@pytest.mark.parametrize("total", [1, 3, 29, 100, 300, 999, 12_345, 1_281_167])
def test_share_of_a_count_never_excludes_the_count(total):
    for count in {*range(0, total, max(1, total // 300)), total}:
        assert not exceeds(count, count / total, total)
        assert exceeds(count + 1, count / total, total)
    assert not exceeds(29, 0.29, 100) and exceeds(30, 0.29, 100)
