"""Tests of how messages, names, numbers and times are written."""

import logging

import pytest

from dupr_tf.text import (
    MOST_LABEL,
    VisibleFormatter,
    duration,
    escape,
    memory_text,
    number_text,
    one_line,
    plot_label,
    size_text,
    visible,
)


def test_one_line_folds_white_space_and_cuts():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line("abcdef", 3) == "abc"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("é.jpg", "é.jpg"), ("a\nb", r"a\nb"), ("\x1b[31m", r"\x1b[31m"), ("a\\b", r"a\\b"), ("\udce9", r"\udce9")],
)
def test_escape_gives_one_printable_line(name, expected):
    assert escape(name) == expected


def test_long_label_of_a_plot_keeps_both_ends():
    label = plot_label("run_" + "x" * 180 + "_seed_3")
    assert len(label) == MOST_LABEL and label.startswith("run_x") and label.endswith("x_seed_3")
    assert plot_label("x" * MOST_LABEL) == "x" * MOST_LABEL
    assert plot_label("_a$\n") == " _a\\$\\n"


def test_visible_escapes_only_terminal_controls():
    assert visible("a\\b\n\x1b[2J\x9b1m\r é\udce9") == "a\\b\n\\x1b[2J\\x9b1m\\r é\\udce9"
    record = logging.LogRecord("x", logging.INFO, "f", 1, "class %s", ("\x1b]0;t\x07",), None)
    assert VisibleFormatter("%(message)s").format(record) == "class \\x1b]0;t\\x07"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"), (7, "7"), (12345, "12,345"), (0.12345, "0.1235"), (999.94, "999.9"), (1234.5, "1,234"),
        (1e15, "1e+15"), (10**16, "1e+16"), (10**301, "too large"), (1e-7, "1e-07"),
    ],
)  # fmt: skip
def test_number_text(value, expected):
    assert number_text(value) == expected


def test_size_text_uses_powers_of_a_thousand():
    assert [size_text(n) for n in (0, 999, 1000, 3.2e9, 5e18)] == ["0 B", "999 B", "1 kB", "3.2 GB", "5,000 PB"]


def test_memory_text_uses_mebibytes_below_a_gibibyte():
    assert [memory_text(n * 2**20) for n in (0.5, 52.4, 1023, 1024, 22_300)] == [
        "0.5 MiB", "52.4 MiB", "1,023 MiB", "1.0 GiB", "21.8 GiB",
    ]  # fmt: skip


def test_duration_shows_hours_only_above_one():
    assert [duration(s) for s in (0, 59.6, 123, 3723)] == ["0:00", "1:00", "2:03", "1:02:03"]


def test_one_line_leaves_out_node_names():
    message = "{{function_node __wrapped__SaveV2_device_/job:localhost/device:CPU:0}} out/c; File too large [Op:SaveV2]"
    assert one_line(message, 40) == "out/c; File too large [Op:SaveV2]"
    assert one_line("a {{b}} file") == "a {{b}} file"
