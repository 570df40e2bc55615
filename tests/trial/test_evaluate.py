import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import f1_score, top_k_accuracy_score

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.errors import LowbitVitError
from lowbit_vit.schema.config import Views
from lowbit_vit.trial.evaluate import Logits, predict, predictions_of_logits, selection_mask, spread_rows

VIEWS = Views(image_size=4, eval_resize=4, train_resize=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def some_logits(count: int = 200, classes: int = 12) -> tuple[Logits, npt.NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, size=count)
    logits = generator.normal(size=(count, classes)).astype(np.float32)
    logits[np.arange(count), labels] += 1.5
    return logits, labels


def some_images(count: int) -> ImageSet:
    pixels = np.random.default_rng(1).integers(0, 255, size=(count, 4, 4, 3), dtype=np.uint8)
    return ImageSet(pixels, np.zeros(count, dtype=np.int64), tuple(map(str, range(count))))


def test_metrics_are_scikit_learns_on_the_whole_and_on_each_half() -> None:
    logits, labels = some_logits()
    selection = selection_mask(len(labels), 0)
    predictions = predictions_of_logits(logits, labels, selection=selection)
    everything = np.ones(len(labels), dtype=np.bool_)
    for part in (everything, selection, ~selection):
        accuracy = predictions.accuracy(part)
        probabilities = torch.softmax(torch.from_numpy(logits[part]).double(), dim=1).numpy()
        assert accuracy.images == part.sum()
        assert accuracy.top1 == pytest.approx((logits[part].argmax(1) == labels[part]).mean())
        assert accuracy.top5 == pytest.approx(top_k_accuracy_score(labels[part], probabilities, k=5, labels=range(12)))
        assert accuracy.macro_f1 == pytest.approx(f1_score(labels[part], logits[part].argmax(1), average="macro"))


@pytest.mark.parametrize("count", [2, 7, 40])
def test_macro_f1_is_scikit_learns_number_also_where_classes_do_not_occur(count: int) -> None:
    logits, labels = some_logits(count)
    found = predictions_of_logits(logits, labels, selection=selection_mask(count, 0)).accuracy()
    assert found.macro_f1 == f1_score(labels, logits.argmax(1), average="macro", zero_division=0.0)


def test_predictions_keep_rank_and_margin_of_each_image() -> None:
    logits, labels = some_logits()
    predictions = predictions_of_logits(logits, labels, selection=selection_mask(len(labels), 0))
    np.testing.assert_array_equal(predictions.best, logits.argmax(1))
    np.testing.assert_array_equal(predictions.among5, (logits > logits[range(200), labels][:, None]).sum(1) < 5)
    np.testing.assert_array_equal(predictions.label, labels)
    np.testing.assert_array_equal(predictions.margin > 0, logits.argmax(1) == labels)
    assert predictions.kl is None


def test_kl_is_torchs_and_zero_for_equal_logits() -> None:
    logits, labels = some_logits()
    reference = logits + np.random.default_rng(2).normal(scale=0.3, size=logits.shape).astype(np.float32)
    selection = selection_mask(len(labels), 0)
    predictions = predictions_of_logits(logits, labels, selection=selection, reference_logits=reference)
    log_p = torch.log_softmax(torch.from_numpy(logits).double(), dim=1)
    log_reference = torch.log_softmax(torch.from_numpy(reference).double(), dim=1)
    expected = torch.nn.functional.kl_div(log_p, log_reference, log_target=True, reduction="none").sum(1)
    assert predictions.kl is not None
    np.testing.assert_allclose(predictions.kl, expected, rtol=1e-5, atol=1e-9)
    same = predictions_of_logits(logits, labels, selection=selection, reference_logits=logits)
    assert same.kl is not None
    assert same.kl.max() == 0.0


def test_equal_logits_rank_by_class_number() -> None:
    logits = np.zeros((2, 7), dtype=np.float32)
    predictions = predictions_of_logits(logits, np.array([0, 6]), selection=np.array([True, False]))
    np.testing.assert_array_equal(predictions.best, [0, 0])
    np.testing.assert_array_equal(predictions.among5, [True, False])


@pytest.mark.parametrize("classes", [2, 3])
def test_fewer_than_five_classes_keep_all_of_them(classes: int) -> None:
    logits, labels = some_logits(classes=classes)
    predictions = predictions_of_logits(logits, labels, selection=selection_mask(len(labels), 0))
    assert predictions.among5.all()
    assert predictions.accuracy().top5 == 1.0


@pytest.mark.parametrize("count", [2, 599, 600])
def test_the_halves_are_seeded_disjoint_and_equal_in_size(count: int) -> None:
    mask = selection_mask(count, 7)
    assert mask.sum() == count // 2
    np.testing.assert_array_equal(mask, selection_mask(count, 7))
    if count > 2:
        assert (mask != selection_mask(count, 8)).any()


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (8, 4), (3, 4)])
def test_every_image_gets_its_logits_in_order_and_every_call_has_one_shape(count: int, batch_size: int) -> None:
    images = some_images(count)
    shapes: list[int] = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        shapes.append(len(pixels))
        return pixels.flatten(1)[:, :6]

    logits = predict(lambda _: forward, images, VIEWS, batch_size=batch_size, device="cpu", dtype=torch.float32, title="x")
    expected = images.images.transpose(0, 3, 1, 2).reshape(count, -1)[:, :6] / 255
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    assert set(shapes) == {min(batch_size, count)}


def test_logits_that_are_not_finite_raise_with_their_count() -> None:
    def forward(pixels: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(pixels), 3)
        logits[1] = torch.nan
        return logits

    with pytest.raises(LowbitVitError, match="2 of 8 images"):
        predict(lambda _: forward, some_images(8), VIEWS, batch_size=4, device="cpu", dtype=torch.float32, title="x")


def test_images_are_taken_from_the_whole_set_each_once() -> None:
    assert spread_rows(10, 4).tolist() == [0, 3, 6, 9]
    assert spread_rows(10, 50).tolist() == list(range(10))
