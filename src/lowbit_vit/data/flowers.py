"""Oxford Flowers-102 with its official split.

Source: Nilsback and Zisserman, "Automated flower classification over a large number of classes", 2008,
https://www.robots.ox.ac.uk/~vgg/data/flowers/102/. The folder layout is torchvision's:
`flowers-102/{imagelabels.mat, setid.mat, jpg/image_00001.jpg, ...}`. The split equals that of torchvision's `Flowers102` (tested),
which keeps it in private attributes, and whose import takes 2 s and 0.8 GB.
"""

from pathlib import Path

from PIL import Image
from scipy.io import loadmat

from lowbit_vit.data.remote_files import FLOWERS, check_file
from lowbit_vit.data.source import Item, Source, Split, check_source
from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import FlowersData

FOLDER = "flowers-102"
COPY_SIDE = 256  # shorter side of the copies, px; the originals' is 500 or more
KEYS: dict[Split, str] = {"train": "trnid", "val": "valid", "test": "tstid"}

# In the order of the labels; the spelling is torchvision's.
CLASS_NAMES = (
    "pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea", "english marigold", "tiger lily", "moon orchid",
    "bird of paradise", "monkshood", "globe thistle", "snapdragon", "colt's foot", "king protea", "spear thistle", "yellow iris",
    "globe-flower", "purple coneflower", "peruvian lily", "balloon flower", "giant white arum lily", "fire lily", "pincushion flower",
    "fritillary", "red ginger", "grape hyacinth", "corn poppy", "prince of wales feathers", "stemless gentian", "artichoke",
    "sweet william", "carnation", "garden phlox", "love in the mist", "mexican aster", "alpine sea holly", "ruby-lipped cattleya",
    "cape flower", "great masterwort", "siam tulip", "lenten rose", "barbeton daisy", "daffodil", "sword lily", "poinsettia",
    "bolero deep blue", "wallflower", "marigold", "buttercup", "oxeye daisy", "common dandelion", "petunia", "wild pansy", "primula",
    "sunflower", "pelargonium", "bishop of llandaff", "gaura", "geranium", "orange dahlia", "pink-yellow dahlia?", "cautleya spicata",
    "japanese anemone", "black-eyed susan", "silverbush", "californian poppy", "osteospermum", "spring crocus", "bearded iris",
    "windflower", "tree poppy", "gazania", "azalea", "water lily", "rose", "thorn apple", "morning glory", "passion flower", "lotus",
    "toad lily", "anthurium", "frangipani", "clematis", "hibiscus", "columbine", "desert-rose", "tree mallow", "magnolia", "cyclamen",
    "watercress", "canna lily", "hippeastrum", "bee balm", "ball moss", "foxglove", "bougainvillea", "camellia", "mallow",
    "mexican petunia", "bromelia", "blanket flower", "trumpet creeper", "blackberry lily",
)  # fmt: skip


def list_images(config: FlowersData, root: Path) -> Source:
    """List the 1,020 + 1,020 + 6,149 images of the official split.

    Args:
        config: where `flowers-102/` lies, and what its images are.
        root: where a relative `config.root` starts.

    Raises:
        DataError: a file of labels or splits is missing or not the official one (md5), an image is missing, or the images are
            not of the kind of `data.images`; names the file.
    """
    folder = root / config.root / FOLDER
    for file in (file for file in FLOWERS if file.name.endswith(".mat")):
        if not (folder / file.name).is_file():
            raise DataError(f"{folder / file.name}: missing; run lowbit-vit fetch flowers-102 --to {folder.parent}, or put a copy there")
        check_file(file, folder / file.name)
    labels = loadmat(folder / "imagelabels.mat")["labels"][0]  # of image 1, 2, ...: 1 to 102
    numbers = loadmat(folder / "setid.mat")
    splits = {split: tuple(_item(folder, number, labels[number - 1]) for number in sorted(numbers[key][0])) for split, key in KEYS.items()}
    what = {"original": "original images", "256-px copies": "copies of 256 px (shorter side)"}[config.images]
    _check_size(folder / "jpg" / "image_00001.jpg", config)
    return check_source(Source(str(folder), CLASS_NAMES, splits, f"Oxford Flowers-102, official split, {what}"))


def _item(folder: Path, number: int, label: int) -> Item:
    path = folder / "jpg" / f"image_{number:05d}.jpg"
    if not path.is_file():
        raise DataError(f"{path}: missing; unpack 102flowers.tgz into {folder}")
    return Item(path.name, path, int(label) - 1)


def _check_size(path: Path, config: FlowersData) -> None:
    """Refuse a wrong `data.images`, because every accuracy is labelled with it."""
    try:
        with Image.open(path) as image:
            side = min(image.size)
    except OSError as error:
        raise DataError(f"{path}: not an image; replace it") from error
    found = "256-px copies" if side == COPY_SIDE else "original"
    if found != config.images:
        raise DataError(f"{path}: {side} px on its shorter side, so key data.images must be {found!r}, not {config.images!r}")
