"""Tests of classes that are probably one class under two names: a warning, and a row in `convert` and `doctor`."""

import pytest

from dupr_tf.cli import main
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.labels.class_names import MOST_CLASSES, shown_classes, similar_classes, similar_text
from tests.label_formats import FORMATS
from tests.labelled_scenes import pictures

MISSPELT = {"labelme": "*.json", "voc": "*.xml", "roboflow_voc": "*.xml", "cvat": "*.xml", "label_studio": "*.json"}
SPLITS = {"train": pictures(12), "val": pictures(3, seed=1)}


@pytest.mark.parametrize(
    ("rarer", "commoner", "count", "similar"),
    [
        ("Person", "person", 2, True),
        ("traffic_light", "Traffic light", 2, True),
        ("persn", "person", 5, True),
        ("persn", "person", 4, False),  # not much commoner
        ("preson", "person", 5, True),
        ("cats", "cat", 5, True),
        ("hot dig", "hot dog", 5, False),  # short words of other letters are other words
        ("traffic lighd", "traffic light", 5, True),
        ("cow", "cat", 5, False),
        ("car", "cat", 5, False),
        ("type1", "type2", 5, False),
        ("défaut a", "défaut b", 5, False),
        ("犬", "猫", 5, False),
        ("!", "?", 5, False),
    ],
)
def test_similar_names(rarer, commoner, count, similar):
    assert similar_classes({rarer: 1, commoner: count}) == ([(rarer, commoner)] if similar else [])


def test_sentence_gives_counts_and_says_what_to_do():
    assert similar_text({"cat": 7, "dog": 0, "Dog": 3}) == ""
    text = similar_text({"Person": 2, "person": 1500, "persn": 1})
    assert text.startswith(
        "Classes of nearly the same name: 'Person' (2 boxes) and 'person' (1,500), 'persn' (1 boxes)"
    )
    assert text.endswith(" If they are one class, give it one name in the labels.")


def test_suspicious_classes_are_never_in_the_last_row():
    train = {f"{letter}{letter}": 100 for letter in "abcdefghijklmnopqrstuvwxyz"} | {"zoo": 60, "zo": 0, "Zoo": 1}
    shown, rest = shown_classes({"train": train})
    assert shown == [*list(train)[:MOST_CLASSES], "zoo", "Zoo"] and rest == [*list(train)[MOST_CLASSES:26], "zo"]
    val = dict.fromkeys(train, 1) | {"yy": 0}
    assert set(shown_classes({"train": train, "val": val})[0]) - set(shown) == {"yy", "zo"}


@pytest.mark.parametrize("name", MISSPELT)
def test_misspelt_class_is_a_warning_and_stays(tmp_path, name, capsys, caplog):
    root = FORMATS[name][0](tmp_path / "set", SPLITS)
    file = min(path for path in root.rglob(MISSPELT[name]) if "bus" in path.read_text())
    text = file.read_text()
    place = text.index("<box") if name == "cvat" else 0  # the list of labels comes first
    text = text[:place] + text[place:].replace("bus", "Bus", 1)
    file.write_text(
        text.replace("<name>bus", "<name>Bus</name></label><label><name>bus", 1) if name == "cvat" else text
    )
    read = read_annotations(root, "train", max_bad_share=0)
    assert "Bus" in read.class_names and "train: classes of nearly the same name: 'Bus' (1 boxes)" in caplog.text
    words = ["convert", str(root), "--to", "yolo", "--output", str(tmp_path / "new")]
    assert main(words) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["boxes", "of", "the", "class", "train", "val"] in rows and ["Bus", "1", "0"] in rows
    assert sum(int(row[1]) for row in rows if row[0] in ("Bus", "bus", "cat", "dog")) == int(
        next(row[3] for row in rows if row[0] == "train:")
    )
