"""The linear model: its hashes and weights against plain references, and fitting it."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfTransformer

from pipeline.data.prepared import Tokens
from pipeline.errors import WorkFailed
from pipeline.model import build
from pipeline.model.linear import LinearForSequenceClassification, ngrams
from pipeline.train import batches, linear

NAMES = ["sport", "money", "science"]
EXCLUDED = [0, 1, 2, 3]


def rows_of(rows: list[list[int]], labels: list[int]) -> Tokens:
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    return Tokens(np.array([i for r in rows for i in r], np.int32), offsets, np.array(labels, np.int64))


def some(rows: int, seed: int, classes: int = 3) -> Tokens:
    """Rows whose tokens come from a range of their class, framed by two special tokens."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    texts = [[2, *(random.integers(10, 40, random.integers(3, 9)) + 20 * int(c)).tolist(), 3] for c in labels]
    return rows_of(texts, labels.tolist())


def fitted(
    train: Tokens, validation: Tokens | None = None, names: list[str] = NAMES
) -> LinearForSequenceClassification:
    return linear.fit(train, validation, names, EXCLUDED, 0, 2, seed=17).model


@pytest.fixture(scope="module")
def model() -> LinearForSequenceClassification:
    return fitted(some(300, 1), some(120, 2))


def splitmix(z: int) -> int:
    top = (1 << 64) - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & top
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & top
    return z ^ (z >> 31)


def reference(tokens: list[int], longest: int) -> Counter[int]:
    """The hashes of one row in Python's own integers."""
    top = (1 << 64) - 1
    words = [t for t in tokens if t not in EXCLUDED]
    found: Counter[int] = Counter()
    for start in range(len(words)):
        state = 0
        for token in words[start : start + longest]:
            state = splitmix((state + (token + 1) * 0x9E3779B97F4A7C15) & top)
            found[state if state < 1 << 63 else state - (1 << 64)] += 1
    return found


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_hashes_are_those_of_plain_integers(longest: int) -> None:
    rows = [[2, 7, 9, 7, 9, 3], [], [2, 3], [5], [2, 8, 1, 9, 4, 3]]
    ids = torch.tensor([i for r in rows for i in r])
    number = torch.tensor([n for n, r in enumerate(rows) for _ in r])
    row, hashed = ngrams(ids, number, longest, EXCLUDED)
    for n, tokens in enumerate(rows):
        assert Counter(hashed[row == n].tolist()) == reference(tokens, longest)


def test_weights_are_those_of_scikit_learn(model: LinearForSequenceClassification) -> None:
    train = some(300, 1)
    known = {h: i for i, h in enumerate(model.hashes.tolist())}
    texts = [train.ids[a:b].tolist() for a, b in zip(train.offsets, train.offsets[1:], strict=False)]
    counts = np.zeros((len(texts), len(known)))
    for n, text in enumerate(texts):
        for hashed, count in reference(text, 2).items():
            if hashed in known:
                counts[n, known[hashed]] = count
    expected = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    logits = expected @ model.weight.numpy() + model.bias.numpy()
    assert np.allclose(linear.logits(model, train), logits, atol=1e-4)
    assert {int(c) for c in (counts > 0).sum(0)} >= {2}
    assert (counts > 0).sum(0).min() >= 2  # what only one row holds has no weight


def test_forward_says_what_the_sparse_product_says(model: LinearForSequenceClassification) -> None:
    tokens = some(50, 3)
    ids, mask = batches.pad(tokens.ids, tokens.offsets, np.arange(50), 0)
    batch = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
    assert np.allclose(batch.numpy(), linear.logits(model, tokens), atol=1e-5)
    assert (batch.argmax(1).numpy() == tokens.labels).mean() > 0.7
    alone = model(input_ids=torch.from_numpy(ids[:1, : tokens.lengths[0]])).logits
    assert torch.equal(alone[0], batch[0])  # padding and company change nothing


def test_texts_without_a_known_word_get_the_bias(model: LinearForSequenceClassification) -> None:
    ids = torch.tensor([[2, 3, 0], [2, 99_999, 3], [2, 25, 3]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1]])
    logits = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(logits[0], model.bias)
    assert torch.equal(logits[1], model.bias)
    assert not torch.equal(logits[2], model.bias)
    nothing = torch.zeros(2, 4, dtype=torch.int64)
    assert torch.equal(model(input_ids=nothing, attention_mask=nothing).logits, model.bias.expand(2, -1))


def test_the_same_weights_every_time_and_after_loading(model: LinearForSequenceClassification, tmp_path: Path) -> None:
    again = fitted(some(300, 1), some(120, 2))
    model.save_pretrained(tmp_path)
    loaded = build.load(tmp_path)
    for one in (again, loaded):
        state = one.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert loaded.config.id2label == dict(enumerate(NAMES))
    assert loaded.hashes.dtype == torch.int64


def test_confidence_is_calibrated_on_validation_rows() -> None:
    from scipy.special import log_softmax

    def noisy(rows: int, seed: int) -> Tokens:
        one = some(rows, seed)
        wrong = np.random.default_rng(seed).random(rows) < 0.15
        return Tokens(one.ids, one.offsets, np.where(wrong, (one.labels + 1) % 3, one.labels))

    model = fitted(noisy(600, 1), noisy(600, 2))
    held_out = noisy(600, 5)
    scores = linear.logits(model, held_out).astype(np.float64)

    def loss(factor: float) -> float:
        return -float(log_softmax(scores * factor, axis=1)[np.arange(600), held_out.labels].mean())

    assert loss(1.0) < loss(0.5)
    assert loss(1.0) < loss(2.0)


def test_two_labels_and_a_label_without_rows() -> None:
    train = some(100, 1, classes=2)
    two = fitted(train, names=NAMES[:2])
    assert (linear.logits(two, train).argmax(1) == train.labels).mean() > 0.9
    three = fitted(train)  # no row of science
    scores = linear.logits(three, train)
    assert (scores.argmax(1) == train.labels).mean() > 0.9
    assert (scores.argmax(1) < 2).all()


def test_rows_that_share_no_word_can_still_be_learnt() -> None:
    train = rows_of([[10], [20], [30]], [0, 1, 2])
    assert linear.logits(fitted(train), train).argmax(1).tolist() == [0, 1, 2]


def test_nothing_to_learn_from_is_said() -> None:
    for train in (rows_of([[2, 3], [2, 3]], [0, 1]), rows_of([[10], [11]], [0, 0])):
        with pytest.raises(WorkFailed, match="nothing to learn from"):
            fitted(train)


def test_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MAX_TOKENS", 1_000)
    assert linear.rows_taken(500, 5_000, None) == 100
    assert linear.rows_taken(500, 5_000, 60) == 60
    assert linear.rows_taken(90, 900, None) == 90
    assert len(linear.take(some(600, 1), None, 17)) < 600
    monkeypatch.setattr(linear, "MAX_WEIGHTS", 30)
    bounded = linear.fit(some(300, 1), None, NAMES, EXCLUDED, 0, 2, 17)
    assert bounded.model.config.features == 10
    assert bounded.left_out > 0


def test_balanced_classes_pull_towards_the_rare_one() -> None:
    labels = [0] * 90 + [1] * 10
    texts = [[10, 11 + i % 7] for i in range(100)]
    train = rows_of(texts, labels)
    plain = linear.fit(train, None, NAMES[:2], EXCLUDED, 0, 2, 17).model
    balanced = linear.fit(train, None, NAMES[:2], EXCLUDED, 0, 2, 17, "balanced").model

    def margin(one: LinearForSequenceClassification) -> float:
        scores = linear.logits(one, train)
        return float((scores[:, 1] - scores[:, 0]).mean())

    assert margin(balanced) > margin(plain)
    assert math.isfinite(margin(balanced))


def test_ngrams_stay_inside_their_text() -> None:
    tokens = Tokens(np.array([5, 6, 7, 5, 6], np.int32), np.array([0, 2, 2, 3, 5]), np.zeros(4, int))
    table = linear.features(tokens, [], 2).matrix.toarray()
    assert (table[0] == table[3]).all()
    assert [int((row > 0).sum()) for row in table] == [3, 0, 0, 3], "7 is in one row only"
    assert np.linalg.norm(table[0]) == pytest.approx(1.0, abs=1e-6)
