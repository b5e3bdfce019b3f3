"""Logistic regression over blocks gives the results of scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from visao_ray.core.errors import InputError
from visao_ray.models.logistic import fit_logistic

ROWS, WIDTH = 900, 7


def problem(classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, ROWS).astype(np.int32)
    centres = rng.normal(0, 0.5, size=(classes, WIDTH))
    x = (centres[labels] + rng.normal(size=(ROWS, WIDTH))).astype(np.float32)
    return x, labels, rng.uniform(0.5, 2, ROWS).astype(np.float32)


def fit(x, labels, weights, classes, c):
    def blocks():
        return (x[start : start + 128] for start in range(0, ROWS, 128))

    return fit_logistic(blocks, labels, weights, classes, c)


def softmax(logits):
    found = np.exp(logits - logits.max(axis=1, keepdims=True))
    return found / found.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_same_probabilities_as_scikit_learn(classes):
    x, labels, weights = problem(classes)
    kernel, bias = fit(x, labels, weights, classes, 0.01)
    theirs = LogisticRegression(C=0.01, tol=1e-8).fit(x.astype(float), labels, weights)
    np.testing.assert_allclose(softmax(x @ kernel + bias), theirs.predict_proba(x), atol=1e-3)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_same_loss_as_scikit_learn_where_the_penalty_is_weak(classes):
    """The optimum is flat there, so the weights differ within the tolerance."""
    x, labels, weights = problem(classes)
    kernel, bias = fit(x, labels, weights, classes, 10.0)
    theirs = LogisticRegression(C=10.0, tol=1e-8, max_iter=5000)
    theirs.fit(x.astype(float), labels, weights)
    slopes = kernel if classes > 2 else (kernel[:, 1] - kernel[:, 0])[:, None]

    def loss(probability, slopes):
        error = -np.log(probability[np.arange(ROWS), labels])
        return error @ weights + np.square(slopes).sum() / 20

    ours = loss(softmax(x @ kernel + bias), slopes)
    assert ours == pytest.approx(loss(theirs.predict_proba(x), theirs.coef_), rel=1e-4)


def test_a_class_without_rows_is_never_predicted():
    x, labels, weights = problem(2)
    kernel, bias = fit_logistic(lambda: iter([x]), labels * 2, weights, 3, 1.0)
    assert kernel.shape == (WIDTH, 3)
    assert not kernel[:, 1].any()
    assert bias[1] < -20
    with pytest.raises(InputError, match="a single class"):
        fit_logistic(lambda: iter([x]), labels * 0, weights, 3, 1.0)
