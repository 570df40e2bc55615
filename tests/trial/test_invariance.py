import numpy as np

from lowbit_vit.trial.evaluate import spread_rows
from lowbit_vit.trial.measure import compare_logits


def test_equal_logits_are_bit_equal_and_one_changed_class_is_one_flip() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    same = compare_logits(logits, logits.copy(), batch_sizes=(1, 32))
    assert (same.images, same.flips, same.max_abs_logit_difference, same.bit_equal) == (20, 0, 0.0, True)
    other = logits.copy()
    other[3, logits[3].argmin()] += 100
    changed = compare_logits(logits, other, batch_sizes=(1, 32))
    assert (changed.flips, changed.bit_equal) == (1, False)
    assert 99 < changed.max_abs_logit_difference < 101


def test_the_least_bit_counts() -> None:
    logits = np.ones((2, 3), dtype=np.float32)
    other = logits.copy()
    other[0, 0] = np.nextafter(np.float32(1), np.float32(2))
    found = compare_logits(logits, other, batch_sizes=(1, 2))
    assert (found.flips, found.bit_equal) == (0, False)
    assert found.max_abs_logit_difference > 0


def test_images_are_taken_from_the_whole_set_each_once() -> None:
    assert spread_rows(10, 4).tolist() == [0, 3, 6, 9]
    assert spread_rows(10, 50).tolist() == list(range(10))
