"""Lists public weights by name, and turns names and addresses into files to download. Contacts no address.

docs/weights.md cites the source of each address and each hash. No file was downloaded when the table was written.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, urlsplit

from dupr_tf.errors import UserError
from dupr_tf.registry import Entry, Registry
from dupr_tf.text import escape

TORCH_ENDINGS = (".pth", ".pt", ".tar", ".ckpt", ".torch")
ENDINGS = (".safetensors", ".npz", *TORCH_ENDINGS)  # of the files that `read_checkpoint` reads
HUB = "https://huggingface.co"
HUB_FILE = "model.safetensors"  # the file of a repository, unless another is named
LOOPBACK = ("127.0.0.1", "localhost", "::1")
NO_HASH = "no published hash"
TARGET = "dupr_tf.weights.loading:load_backbone"
_ADDRESS = re.compile(r"(hf|https?):.+", re.IGNORECASE | re.DOTALL)
_HUB_NAME = re.compile(r"hf:(?P<owner>[\w.-]+)/(?P<repository>[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<file>[\w./-]+))?")
_FORM = "Write hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE."


@dataclasses.dataclass(frozen=True)
class Remote:
    """Describes a public file of weights.

    Args:
        name: name or address, as the user wrote it.
        url: its address. Files of the Hugging Face hub have the hub's own, also with a mirror in `HF_ENDPOINT`.
        file: name of the file, with its ending.
        published: "sha256:HEX" or "md5:HEX", of which HEX may be the first digits only. None if no hash is published.
        terms: licence of the weights as their source states it.
    """

    name: str
    url: str
    file: str
    published: str | None = None
    terms: str | None = None

    @property
    def on_hub(self) -> bool:
        return self.url.startswith(f"{HUB}/")

    @property
    def contacted(self) -> str:
        """Returns the address to contact: that of a mirror if `HF_ENDPOINT` names one."""
        mirror = os.environ.get("HF_ENDPOINT", "").rstrip("/")
        return mirror + self.url.removeprefix(HUB) if mirror and self.on_hub else self.url


def _entry(summary: str, url: str, depth: int, terms: str, published: str | None = None) -> Entry:
    """Returns a line of the table. Files that only PyTorch reads need PyTorch."""
    algorithm, _, digits = (published or "").partition(":")
    known = f"{algorithm} {digits[:8]}…" if published else NO_HASH
    torch = {} if url.endswith(".safetensors") else {"extra": "torch", "modules": ("torch",)}
    facts = {"url": url, "architecture": f"resnet{depth}", "terms": terms, "published": published}
    return Entry(TARGET, f"{summary}, ResNet-{depth}; {known}; {terms}", facts=facts, **torch)


def _timm(depth: int, revision: str = "main", sha256: str | None = None) -> Entry:
    url = f"{HUB}/timm/resnet{depth}.tv_in1k/resolve/{revision}/{HUB_FILE}"
    published = sha256 and f"sha256:{sha256}"
    return _entry("ImageNet classes, timm's copy of torchvision's", url, depth, "BSD-3-Clause", published)


def _torchvision(depth: int, sha256: str, version: int = 1) -> Entry:
    url = f"https://download.pytorch.org/models/resnet{depth}-{sha256}.pth"
    return _entry(f"ImageNet classes, torchvision, version {version}", url, depth, "BSD-3-Clause", f"sha256:{sha256}")


def _moco(version: int, epochs: int, md5: str) -> Entry:
    name = f"moco_v{version}_{epochs}ep"
    url = f"https://dl.fbaipublicfiles.com/moco/moco_checkpoints/{name}/{name}_pretrain.pth.tar"
    return _entry(f"MoCo v{version}, {epochs} epochs", url, 50, "CC BY-NC 4.0", f"md5:{md5}")


def _swav(epochs: int) -> Entry:
    url = f"https://dl.fbaipublicfiles.com/deepcluster/swav_{epochs}ep_pretrain.pth.tar"
    return _entry(f"SwAV, {epochs} epochs, 2×224 and 6×96 px", url, 50, "non-commercial")


def _pycontrast(method: str, path: str) -> Entry:
    url = f"https://www.dropbox.com/sh/87d24jqsl6ra7t2/{path}?dl=1"
    return _entry(f"{method} of PyContrast, 200 epochs", url, 50, "BSD-2-Clause")


def _openmmlab(method: str, epochs: int, path: str) -> Entry:
    url = f"https://download.openmmlab.com/mmselfsup/{path}.pth"
    published = f"sha256:{path[-8:]}"  # OpenMMLab's script writes the first digits at the end of the name
    return _entry(f"{method} trained by OpenMMLab, {epochs} epochs", url, 50, "Apache-2.0", published)


_RESNET50 = _timm(
    50, "78f3ecfdb38e06d9b8397f662e7ab8fee96026fa", "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888"
)
_NPID = "4node_800ep_32kneg_cosine_resnet_23_07_20.75432662/model_final_checkpoint_phase799.torch"
CATALOGUE = Registry(
    "public checkpoint",
    "--weights",
    {
        "imagenet": dataclasses.replace(
            _RESNET50, summary="imagenet/BACKBONE for the backbone of the config; without a config imagenet/resnet50"
        ),
        "imagenet/resnet18": _timm(
            18,
            "bbd144b3e5565108aad885f145491d11bc6ce807",
            "694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81",
        ),
        "imagenet/resnet34": _timm(
            34,
            "1b7b21cca82ff974d341713f777bf740c2db38c4",
            "0bb82595a564991a9d424708b33f5d843f5aaed7f6c0886ff10849ff97022235",
        ),
        "imagenet/resnet50": _RESNET50,
        "imagenet/resnet101": _timm(101),
        "imagenet/resnet152": _timm(152),
        "torchvision/resnet18": _torchvision(18, "f37072fd"),
        "torchvision/resnet34": _torchvision(34, "b627a593"),
        "torchvision/resnet50": _torchvision(50, "0676ba61"),
        "torchvision/resnet50_v2": _torchvision(50, "11ad3fa6", 2),
        "torchvision/resnet101": _torchvision(101, "63fe2227"),
        "torchvision/resnet101_v2": _torchvision(101, "cd907fc2", 2),
        "torchvision/resnet152": _torchvision(152, "394f9c45"),
        "torchvision/resnet152_v2": _torchvision(152, "f82ba261", 2),
        "moco_v1_200ep": _moco(1, 200, "b251726a"),
        "moco_v2_200ep": _moco(2, 200, "59fd9945"),
        "moco_v2_800ep": _moco(2, 800, "a04e12f8"),
        "swav_100ep": _swav(100),
        "swav_200ep": _swav(200),
        "swav_400ep": _swav(400),
        "swav_800ep": _swav(800),
        "insdis_200ep": _pycontrast("InstDis", "AACcsSIt1_Njv7GsmsuzZ6Sta/InsDis.pth"),
        "pirl_200ep": _pycontrast("PIRL", "AADN4jKnvTI0U5oT6hTmQZz8a/PIRL.pth"),
        "densecl_200ep": _openmmlab("DenseCL", 200, "densecl/densecl_resnet50_8xb32-coslr-200e_in1k_20220225-8c7808fe"),
        "byol_200ep": _openmmlab("BYOL", 200, "byol/byol_resnet50_16xb256-coslr-200e_in1k_20220527-b6f8eedd"),
        "byol_300ep": _openmmlab("BYOL", 300, "byol/byol_resnet50_8xb32-accum16-coslr-300e_in1k_20220225-a0daa54a"),
        "npid_pp_800ep": _entry(
            "NPID++ of VISSL, 800 epochs", f"https://dl.fbaipublicfiles.com/vissl/model_zoo/npid_pp/{_NPID}", 50, "MIT"
        ),
    },
)


def is_public(weights: str | Path | None) -> bool:
    """Returns True for a name of the catalogue and for an address, which are text. A `Path` is always a local file."""
    return isinstance(weights, str) and (weights in CATALOGUE or _ADDRESS.fullmatch(weights) is not None)


def short_name(weights: str) -> str:
    """Returns a name for a file or a label: that of the catalogue without `/`, or the last part of an address."""
    if weights in CATALOGUE:
        return weights.replace("/", "_")
    return PurePosixPath(urlsplit(weights).path).name


def find_public(weights: str) -> Remote:
    """Returns the file that a name or address stands for.

    Raises:
        UserError: a malformed address, an ending that is not read, or a file that needs PyTorch where it is missing.
    """
    if weights in CATALOGUE:
        facts = CATALOGUE.check(weights).facts
        file = PurePosixPath(urlsplit(facts["url"]).path).name
        return Remote(weights, facts["url"], file, facts["published"], facts["terms"])
    remote = _on_hub(weights) if weights.lower().startswith("hf:") else _at_address(weights)
    if Path(remote.file).suffix in TORCH_ENDINGS and importlib.util.find_spec("torch") is None:
        raise UserError("--weights", f"{remote.file} needs PyTorch, which is not installed.", "Run: pip install torch.")
    return remote


def name_for(weights: str | Path | None, backbone: str, width: float) -> str | Path | None:
    """Returns the weights for a config: `imagenet` becomes that of the config's backbone, others do not change.

    Raises:
        UserError: weights of the catalogue that are not those of the config's backbone.
    """
    if not isinstance(weights, str) or weights not in CATALOGUE:
        return weights
    own = f"imagenet/{backbone}"
    weights = own if weights == "imagenet" and own in CATALOGUE else weights
    held = CATALOGUE[weights].facts["architecture"]
    if held != backbone or width != 1:
        problem = f"{weights} is a {held} at width 1, and the config has a {backbone} at width {width:g}."
        raise UserError("--weights", problem, f"Use --model.backbone {held} --model.width 1.")
    return weights


def _on_hub(weights: str) -> Remote:
    match = _HUB_NAME.fullmatch(weights)
    if match is None or ".." in weights:
        raise UserError("--weights", f"{escape(weights)} is not the name of a file on the Hugging Face hub.", _FORM)
    path = match["file"] or HUB_FILE
    repository = f"{match['owner']}/{match['repository']}"
    return Remote(weights, f"{HUB}/{repository}/resolve/{match['revision'] or 'main'}/{path}", _file_name(path))


def _at_address(weights: str) -> Remote:
    try:
        parts = urlsplit(weights)
        host, secret = parts.hostname, parts.username or parts.password
        parts.port  # noqa: B018 — raises ValueError if it is no number
    except ValueError:
        host, secret, parts = None, None, SplitResult("", "", "", "", "")
    if not host or re.search(r"\s", weights):
        raise UserError("--weights", f"{escape(weights)} is not an address.", "Pass https://HOST/PATH of a file.")
    if secret:
        fix = "Download the file yourself, and pass its path."
        raise UserError("--weights", f"The address at {host} holds a name or password, which a run would record.", fix)
    if parts.scheme.lower() == "http" and host not in LOOPBACK:
        raise UserError("--weights", f"{weights} is not encrypted, so the file could be changed.", "Use https://.")
    return Remote(weights, parts._replace(fragment="").geturl(), _file_name(parts.path))


def _file_name(path: str) -> str:
    file = PurePosixPath(path).name
    if Path(file).suffix not in (".keras", *ENDINGS):
        fix = "Pass the address of such a file, or download the file yourself and rename it."
        problem = f"Expected the address of a file ending in .keras, {', '.join(ENDINGS)}, received {file or path!r}."
        raise UserError("--weights", problem, fix)
    return file
