"""A data set of TensorFlow Datasets that its own builder wrote: images by number, and what is refused."""

import shutil
from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf

from dupr_tf import cli
from dupr_tf.config import parse_config
from dupr_tf.data.bad_images import BadImages
from dupr_tf.data.images.listing import check_root, resolved_kind
from dupr_tf.data.open_source import open_source
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.data.tfds_source import TfdsSource
from tests.refusals import refusal

tfds = pytest.importorskip("tensorflow_datasets")
COUNT = 30
CONFIG = parse_config({"data": {"image_size": 32}, "train": {"batch_size": 8, "micro_batches": 1}})
FEATURES = {
    "one": {"photo": tfds.features.Image(encoding_format="jpeg"), "id": np.int64},
    "two": {"image": tfds.features.Image(), "mask": tfds.features.Image()},
    "pair": {"left": tfds.features.Image(), "right": tfds.features.Image()},
}


def _picture(i):
    return np.random.default_rng(i).integers(0, 255, (40, 50 + i, 3), np.uint8)


class Tiny(tfds.core.GeneratorBasedBuilder):
    url_infos: ClassVar = {}  # tfds looks for them with importlib_resources, which it does not bring along
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name) for name in FEATURES]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(FEATURES[self.builder_config.name])
        )

    def _split_generators(self, dl_manager):
        return {"train": self._examples(COUNT), "test": self._examples(4)}

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, count):
        for i in range(count):
            yield i, {key: i if key == "id" else _picture(i) for key in FEATURES[self.builder_config.name]}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for name in FEATURES:
        config = tfds.download.DownloadConfig(num_shards=3)
        Tiny(config=name, data_dir=folder).download_and_prepare(download_config=config)
    Tiny(config="one", data_dir=folder / "array", file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(autouse=True)
def environment(monkeypatch, data_dir):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))


def encoded(data_dir, split, config="one", key="photo"):
    builder = Tiny(config=config, data_dir=data_dir)
    decoders = {key: tfds.decode.SkipDecoding()}
    return [row[key] for row in tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders))]


def read_all(source):
    return [source.read(tf.constant(i, tf.int64)).numpy() for i in range(len(source))]


@pytest.mark.parametrize("split", ["train", "test", "train[:10]", "train[20%:70%]", "train+test"])
def test_images_come_by_number_as_tfds_has_them(data_dir, split):
    source = TfdsSource(f"tiny/one:1.0.0:{split}")
    assert sorted(read_all(source)) == sorted(encoded(data_dir, split))
    assert len(source.files) > 1 or split in ("test", "train[:10]")


def test_the_default_split_is_train_and_a_feature_called_image_wins(data_dir):
    assert sorted(read_all(TfdsSource("tiny/two"))) == sorted(encoded(data_dir, "train", "two", "image"))


def test_the_pipeline_reads_every_image_once_an_epoch():
    root, source = open_source("tfds:tiny/one:train")
    assert root == "tfds:tiny/one:train"
    found = [batch["index"].numpy() for batch in view_pairs(source, CONFIG, 0, 3, BadImages(source, 0))]
    assert len(set(np.concatenate(found).tolist())) == 24


def test_a_damaged_record_is_not_read_and_told_with_its_place(data_dir, tmp_path, monkeypatch, caplog):
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    source = TfdsSource("tiny/one")
    file, offset = source.files[0], int(source.offsets[2])
    with open(file, "r+b") as opened:
        opened.seek(offset + 300)
        byte = opened.read(1)[0]
        opened.seek(offset + 300)
        opened.write(bytes([byte ^ 1]))
    with pytest.raises(tf.errors.DataLossError):
        source.read(tf.constant(2, tf.int64))
    bad = BadImages(source, 0.5)
    indices = [b["index"].numpy() for b in view_pairs(source, CONFIG, 0, 4, bad)]
    assert set(bad.found) == {2} and 2 not in np.concatenate(indices)
    assert f"example 2 (byte {offset} of {file})" in caplog.text
    with open(file, "r+b") as opened:
        opened.truncate(offset + 5)
    assert file in refusal(TfdsSource, "tiny/one").problem


@pytest.mark.parametrize(("name", "content"), [
    ("nowhere", "`tfds build nowhere`"),
    ("tiny/one:9.9.9", "`tfds build tiny/one:9.9.9`"),
    ("tiny/one:valid", "split valid"),
    ("tiny/one:train[", "split train["),
    ("tiny/pair", "['left', 'right']"),
    ("tiny one", "tfds:NAME[/CONFIG]"),
    ("tiny/one:train[:0]", "tiny/one/1.0.0"),
])  # fmt: skip
def test_tfds_name_that_cannot_be_read_is_refused(name, content):
    assert content in str(refusal(TfdsSource, name))


def test_files_that_hold_no_tfrecords_are_refused(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir / "array"))
    assert "array_record" in refusal(TfdsSource, "tiny/one").problem


def test_the_command_takes_the_name_as_data(capsys):
    assert resolved_kind("tfds:tiny/one:train") == "tfds"
    check_root("tfds:tiny/one:train")
    assert refusal(check_root, "photos", "tfds").field == "data.kind"
    assert cli.main(["pretrain", "configs/demo.yaml", "--data", "tfds:nowhere", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "`tfds build nowhere`" in error and error.count("\n") == 1
