"""The headings of published tables: which quantity a column holds, in which unit, and what else its heading says.

A name is looked for among a heading's words; the words that are left tell the column from others of its kind.
"""

import difflib
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, get_args

Time = Literal["mean", "p50", "p95", "p99", "cpu", "kernel", "attention"]
Setting = Literal["batch", "image_size", "images"]
Rate = Literal["top1", "top5", "f1"]
Cost = Literal["size", "vram", "params", "macs", "flop", "power", "energy"]
Quantity = Literal[Time, Setting, Rate, Cost, "throughput", "top1_error", "top5_error"]
# What depends on the batch size.
MEASURED: tuple[Quantity, ...] = (*get_args(Time), "throughput", "vram", "power", "energy")
Units = dict[str, Fraction]


def _units(**scales: float | Fraction) -> Units:
    return {name: Fraction(scale) for name, scale in scales.items()}


TIME = _units(s=1000, ms=1, us=Fraction(1, 1000), ns=Fraction(1, 10**6), sec=1000, seconds=1000, msec=1)
TIME["\N{MICRO SIGN}s"] = Fraction(1, 1000)
BYTES = _units(b=1, bytes=1, kb=10**3, mb=10**6, gb=10**9, kib=2**10, mib=2**20, gib=2**30)
BINARY = _units(kb=2**10, mb=2**20, gb=2**30)
_IMAGES = ("img", "image", "images", "imgs", "im", "sample", "samples")
_PER_SECOND = tuple(f"{image}/{second}" for image in _IMAGES for second in ("s", "sec", "second"))
_PER_SECOND += ("fps", "ips", "samples per sec", "img per sec", "images per second", "images per sec")
RATE = dict.fromkeys(_PER_SECOND, Fraction(1)) | {"k": Fraction(1000)}
SHARE = {"": Fraction(1), "%": Fraction(1, 100), "pct": Fraction(1, 100), "percent": Fraction(1, 100)}
COUNT = {"": Fraction(1), "k": Fraction(1000)}
MANY = _units(k=10**3, m=10**6, million=10**6, millions=10**6, b=10**9, bn=10**9, g=10**9, t=10**12)
PIXELS = {"": Fraction(1), "px": Fraction(1)}
# Of a number that compares two others.
COMPARED = dict.fromkeys(("", "x", "\N{MULTIPLICATION SIGN}", "times"), Fraction(1))
COMPARED |= dict.fromkeys(("%", "pp", "pt", "pts", "points"), Fraction(1, 100))

_RUNTIMES = ("inference time", "infer time", "runtime", "step time:ms")
# Names as they are met in tables, without unit, in lower case; the first is the one that messages suggest. Behind a colon stands the
# unit that is meant where the heading has none (timm's raw results).
QUANTITIES: dict[Quantity, tuple[Units, tuple[str, ...]]] = {
    "size": (BYTES, ("model size", "size", "file size", "disk size", "size on disk", "weight size", "weights size", "checkpoint size")),
    "mean": (TIME, (*(f"{word} latency".strip() for word in ("", "mean", "average", "avg")), "latency mean", *_RUNTIMES)),
    "p50": (TIME, ("latency p50", "p50", "p50 latency", "median latency", "latency median")),
    "p95": (TIME, ("latency p95", "p95", "p95 latency")),
    "p99": (TIME, ("latency p99", "p99", "p99 latency")),
    "throughput": (RATE, ("throughput", "speed", *(f"{unit}:{unit}" for unit in _PER_SECOND))),
    "vram": (BYTES, ("peak vram", "vram", "peak memory", "peak gpu memory", "peak mem", "gpu memory", "gpu mem", "max memory")),
    "cpu": (TIME, ("cpu latency", "latency cpu")),
    "top1": (
        SHARE,
        ("top 1 acc", "top 1 accuracy", "top 1", "top1", "accuracy", "top1 acc", "top1 accuracy", "acc 1", "acc1", "acc", "accuracy top 1"),
    ),
    "top5": (SHARE, ("top 5 acc", "top 5 accuracy", "top 5", "top5", "top5 acc", "top5 accuracy", "acc 5", "acc5", "accuracy top 5")),
    "f1": (SHARE, ("f1 score", "f1", "macro f1", "f1 macro")),
    "kernel": (TIME, ("total cuda kernel time", "cuda kernel time", "kernel time", "total kernel time")),
    "attention": (TIME, ("attention kernel time", "attention time")),
    "images": (COUNT, ("images", "test images", "eval images", "number of images", "num images", "n images")),
    "batch": (COUNT, ("batch size", "batch", "bs", "batchsize")),
    "image_size": (PIXELS, ("image size", "img size", "input size", "resolution", "input resolution", "image resolution")),
    "params": (MANY, ("params", "param", "parameters", "param count:m", "parameter count", "number of parameters", "num params")),
    "macs": (MANY, ("macs", "gmacs:g", "mmacs:m", "macs g")),
    "flop": (MANY, ("flops", "flop", "gflops:g", "gflop:g", "mflops:m", "tflops:t")),
    "power": (_units(w=1, kw=1000, mw=Fraction(1, 1000)), ("power", "average power", "avg power", "mean power", "power draw")),
    "energy": (_units(j=1, mj=Fraction(1, 1000), kj=1000, wh=3600), ("energy", "energy per image", "energy image")),
    "top1_error": (SHARE, ("top 1 error", "top 1 err", "top1 error", "top1 err", "error", "error rate", "err")),
    "top5_error": (SHARE, ("top 5 error", "top 5 err", "top5 error", "top5 err")),
}
LABELS: tuple[str, ...] = ("model", "name", "variant", "method", "arm", "network", "backbone", "architecture", "arch", "quantization")
LABELS += ("format", "precision", "dtype", "weights", "bits", "attention", "kernel", "device", "gpu", "hardware", "dataset", "backend")
NUMBERS = ("row", "index", "rank", "no")
# Names that are parts of others (patch size, calibration images): a heading that says more is of something else.
_ALONE = ("size", "images", "speed", "accuracy", "acc", "error", "err", "runtime", "b", "resolution", "batch", "params", "param", "flop")
# Words that tell no column from another of its kind.
_USUAL = re.compile("infer|inference|eval|evaluation|val|validation|imagenet|in|in1k|1k|number|of|the|measured")
_DERIVED = re.compile(
    r"speed-?\s?up|accelerat|improve|\bgains?\b|reduc|saving|\bdrop\b|\bdelta\b|\bdiff|\bloss of\b|compression|overhead|faster|smaller|"
    r"\bchange|[Δδ∆]|\bdegradation\b|\bratio\b|\brelative\b"
)
# Words that make another quantity of a known one.
_OTHERWISE = re.compile(
    r"\b(p\d+|std|min|max|worst|best|error|err|per|cold|first|load|total|train|training|epoch|limit|rank|top|acc|accuracy|loss)\b"
)

_BRACKETED = re.compile(r"[(\[]([^()\[\]]*)[)\]]")
_WORD = "[a-zµ0-9./]*[a-zµ0-9]"
# bs=1, batch size: 8, batch_32, and the letter alone in latency_ms_b32.
_BATCH = re.compile(r"[@,;]?\s*(?<![a-z0-9])(?:batch(?:[ -]?size)?|bs|(b)(?=[=\d]))[ =:-]{0,3}([1-9]\d{0,5})(?!\.?[a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class Heading:
    """What a heading says.

    Attributes:
        text: as printed.
        quantity: of the column; None: not known.
        unit: in lower case; "" where there is none.
        shown: the unit as printed.
        more: words that are neither name nor unit, such as a GPU's name.
        derived: whether the column compares: a speedup, a reduction.
        aside: whether it starts with #: no column by itself.
        name: all words without the unit.
        of: the quantity that a derived column names.
        batch: images a forward of all its numbers; 0: not said.
    """

    text: str
    quantity: Quantity | None
    unit: str
    shown: str
    more: str
    derived: bool
    aside: bool
    name: str
    of: Quantity | None = None
    batch: int = 0

    @property
    def units(self) -> Units:
        """The units that its quantity has."""
        return {} if self.quantity is None else QUANTITIES[self.quantity][0]

    @property
    def silent(self) -> bool:
        """Whether its numbers depend on a batch size that it does not name."""
        return self.quantity in MEASURED and not self.batch

    @property
    def allowed(self) -> Units:
        """The units that its cells may have."""
        return COMPARED if self.derived else self.units


_EVERY_UNIT = {unit for units, _ in QUANTITIES.values() for unit in units if unit}
_EVERY_NAME = [(name.partition(":"), quantity) for quantity, (_, names) in QUANTITIES.items() for name in names]
# A long name is told before one that is a part of it, a percentile before the latency that it is of.
_EVERY_NAME.sort(key=lambda one: (-len(one[0][0].split()), one[1][0] != "p"))
# Quantity and implied unit by the words of each name.
_NAMES: dict[tuple[str, ...], tuple[Quantity, str]] = {tuple(name.split()): (what, unit) for (name, _, unit), what in _EVERY_NAME}


def read_heading(text: str) -> Heading:
    """Find the quantity, the unit and the rest: `Latency P95 (ms)`, `latency_p95_ms`, `Acc@1 [%] ↑`, `Latency on T4 (ms)`."""
    sized = _BATCH.search(text.replace("_", " "))
    if sized:
        plain_head = read_heading(re.sub(r"[(\[]\s*[)\]]", " ", text[: sized.start()] + text[sized.end() :]).strip(" _,;@"))
        # ViT_B16_latency is of a model.
        if plain_head.name and not (plain_head.more and sized[1]):
            return replace(plain_head, text=text, batch=int(sized[2]))
    counted = re.fullmatch(r"#\s*((?:params?|parameters)\b.*)", text, flags=re.IGNORECASE)
    bare = re.sub(r"\(?(mean\s*)?(\N{PLUS-MINUS SIGN}|\+/?-)\s*[a-z.]*\)?", "", counted[1] if counted else text, flags=re.IGNORECASE)
    plain = bare.replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}")
    parts = [part.strip() for group in _BRACKETED.findall(plain) for part in re.split("[,;]", group)]
    shown = next(filter(is_unit, parts), "")
    bracket = "(" if f"({shown}" in plain else ""
    lower = (plain.replace(bracket + shown, bracket or " ", 1) if shown else plain).lower()
    words, derived = re.findall(f"{_WORD}|%", lower), bool(_DERIVED.search(lower))
    quantity, implied, more = (None, "", " ".join(words)) if derived else _quantity(words)
    of = _quantity([word for word in words if not _DERIVED.search(word)])[0] if derived else None
    if not shown and len(words) > 1 and is_unit(words[-1]) and more:
        shown = words.pop()
        quantity, implied, more = (None, "", " ".join(words)) if derived else _quantity(words)
    if not shown and parts and more:
        # What stands in the place of a unit is one, known or not.
        named, _, rest = _quantity(re.findall(_WORD, _BRACKETED.sub(" ", lower)))
        if named and not rest and "" not in QUANTITIES[named][0] and parts[-1].isalpha():
            quantity, shown, more = named, parts[-1], ""
    aside = text.startswith("#") and not counted
    return Heading(text, quantity, _unit(shown) or implied, shown or implied, more, derived, aside, " ".join(words), of)


def _unit(text: str) -> str:
    """A unit in lower case, without what it is counted for: ms/image, in %, images / sec."""
    bare = text.lower().strip().removeprefix("in ").replace(" ", "").strip(".")
    return re.sub(r"(?<=[sj])/(img|image|sample)$", "", bare)


def is_unit(text: str) -> bool:
    """Whether a text is a unit of some quantity."""
    return _unit(text) in _EVERY_UNIT


def _quantity(words: list[str]) -> tuple[Quantity | None, str, str]:
    """The quantity that words name, the unit that the name implies, and the other words."""
    telling = [word for word in words if not _USUAL.fullmatch(word)]
    for given in (words, telling):
        if tuple(given) in _NAMES:
            return *_NAMES[tuple(given)], ""
    for name, (quantity, implied) in _NAMES.items():
        for at in range(len(telling) - len(name) + 1):
            if tuple(telling[at : at + len(name)]) == name and " ".join(name) not in _ALONE:
                more = " ".join([*telling[:at], *telling[at + len(name) :]])
                return (None, "", " ".join(words)) if _OTHERWISE.search(more) else (quantity, implied, more)
    return None, "", " ".join(words)


def unread(heading: Heading) -> str:
    """A column that is not read, with what to write if it should be."""
    allowed = [unit for unit in heading.units if unit]
    if allowed and heading.unit not in heading.units:
        said = f"unit {heading.unit!r} is not known" if heading.unit else "the unit is missing"
        return f"{heading.text!r}: {said}; allowed: {', '.join(allowed[:4])}; write such as {heading.name} ({allowed[0]})"
    names: dict[str, Units] = {" ".join(name): QUANTITIES[quantity][0] for name, (quantity, _) in _NAMES.items()}
    near = difflib.get_close_matches(heading.name, [*names, *LABELS], n=1, cutoff=0.75) if heading.quantity is None else []
    # P90 is no misspelt P99.
    if not near or heading.derived or heading.aside or re.findall(r"\d", near[0]) != re.findall(r"\d", heading.name):
        return repr(heading.text)
    units = [unit for unit in names.get(near[0], {}) if unit]
    shown = heading.unit if heading.unit in units else next(iter(units), "")
    return f"{heading.text!r} (did you mean {near[0]}{f' ({shown})' if shown else ''}?)"
