"""Tests on a TensorFlow Datasets set written by its own builder: images by number, and what is refused."""

import io
import pickle
import shutil
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.images.listing import check_root, resolved_kind
from dupr_tf.data.tfds import TfdsSource, open_tfds
from tests.refusals import refusal

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")
TRAIN, TEST = range(30), range(30, 34)
FEATURES = {
    "one": {"photo": tfds.features.Image(encoding_format="jpeg"), "id": np.int64},
    "two": {"image": tfds.features.Image(), "mask": tfds.features.Image()},
    "pair": {"left": tfds.features.Image(), "right": tfds.features.Image()},
}


def encoded(i, key="photo"):
    rng, file = np.random.default_rng([i, len(key)]), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (40, 50 + i, 3), np.uint8)).save(file, "JPEG" if key == "photo" else "PNG")
    return file.getvalue()


class Tiny(tfds.core.GeneratorBasedBuilder):
    url_infos: ClassVar = {}  # tfds imports importlib_resources to find them, without depending on it
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name) for name in FEATURES]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(FEATURES[self.builder_config.name])
        )

    def _split_generators(self, dl_manager):
        return {"train": self._examples(TRAIN), "test": self._examples(TEST)}

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, numbers):
        keys = FEATURES[self.builder_config.name]
        for i in numbers:
            yield i, {key: i if key == "id" else io.BytesIO(encoded(i, key)) for key in keys}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for name in FEATURES:
        builder = Tiny(config=name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return folder


@pytest.fixture(autouse=True)
def environment(monkeypatch, data_dir):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))


@pytest.fixture
def copied(data_dir, tmp_path, monkeypatch):
    """Returns the folder of a copy of tiny/one, which is read instead."""
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path / "tiny" / "one" / "1.0.0"


def read_all(source):
    return [source.read(i) for i in range(len(source))]


@pytest.mark.parametrize(
    ("split", "count"), [("train", 30), ("test", 4), ("train[:10]", 10), ("train[20%:70%]", 15), ("train+test", 34)]
)
def test_images_and_order_are_those_of_tfds(data_dir, split, count):
    source = TfdsSource(f"tiny/one:1.0.0:{split}")
    rows = Tiny(config="one", data_dir=data_dir, file_format="array_record").as_data_source(
        split=split, decoders={"photo": tfds.decode.SkipDecoding()}
    )
    assert len(source) == len(rows) == count
    assert read_all(source) == [row["photo"] for row in rows] == [encoded(int(row["id"])) for row in rows]


def test_default_split_is_train_and_feature_image_wins():
    assert sorted(read_all(TfdsSource("tiny/two"))) == sorted(encoded(i, "image") for i in TRAIN)


def test_source_pickles_and_its_digest_depends_on_the_split():
    root, source = open_tfds("tfds:tiny/one:train")
    assert root == "tfds:tiny/one:train"
    again = pickle.loads(pickle.dumps(source))
    assert read_all(again) == read_all(source) and again.digest("") == source.digest("elsewhere")
    assert TfdsSource("tiny/one:train[:10]").digest("") != source.digest("")
    assert source.name(12).startswith("tiny/one/1.0.0 train example 12 (record 2 of ")


def test_damaged_record_and_truncated_file_are_refused(copied):
    source = TfdsSource("tiny/one")
    path = copied / "tiny-train.array_record-00000-of-00003"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1  # in the first record, whose images have about 4 kB
    path.write_bytes(content)
    with pytest.raises(Unusable, match=r"^damaged"):
        source.read(0)
    assert source.read(1) == TfdsSource("tiny/one").read(1)
    path.write_bytes(content[:-1])
    assert str(path) in refusal(TfdsSource, "tiny/one").problem


def test_record_without_image_is_unusable(copied):
    from tensorflow_datasets.proto import tf_example_pb2

    from dupr_tf.data.shards.read import import_array_record

    source = TfdsSource("tiny/one")
    records = [b"\xff no example", tf_example_pb2.Example().SerializeToString(), *[b"" for _ in range(8)]]
    path = copied / "tiny-train.array_record-00000-of-00003"
    writer = import_array_record().ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    for i in (0, 1):
        with pytest.raises(Unusable, match=r"^damaged"):
            source.read(i)


@pytest.mark.parametrize(("name", "content"), [
    ("nowhere", "`tfds build nowhere --file_format=array_record`"),
    ("tiny/one:9.9.9", "`tfds build tiny/one:9.9.9 "),
    ("tiny/one:valid", "split valid"),
    ("tiny/one:train[", "split train["),
    ("tiny/pair", "['left', 'right']"),
    ("tiny one", "tfds:NAME[/CONFIG]"),
    ("tiny/one:train[:0]", "tiny/one/1.0.0"),
])  # fmt: skip
def test_tfds_name_that_cannot_be_read_is_refused(name, content):
    assert content in str(refusal(TfdsSource, name))


def test_set_prepared_as_tfrecord_is_refused(copied):
    info = copied / "dataset_info.json"
    assert '"array_record"' in info.read_text()
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    assert "`tfds build tiny/one --file_format=array_record`" in refusal(TfdsSource, "tiny/one").fix


def test_reading_imports_no_tensorflow():
    code = "import sys; from dupr_tf.data.tfds import TfdsSource; TfdsSource('tiny/one').read(0);"
    code += "sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_kind_is_detected_from_the_root():
    assert resolved_kind("tfds:tiny/one:train") == "tfds"
    check_root("tfds:tiny/one:train")
    assert refusal(check_root, "photos", "tfds").field == "data.kind"
