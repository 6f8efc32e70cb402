"""Made data sets for judging detectors of rows that are not independent.

CLEAN and FAULTY: name of the kind -> function(rng) -> {"x", "y"} or {"h", "labels"}.
Clean: the rows are independent draws, in an order that depends on one view alone at most;
or each row of one view is a fresh draw given the whole sequence of the other view.
Faulty: neighboring (or copied) rows resemble each other in both views more than that allows.
The author of these sets had not seen the detectors. The module needs numpy and scipy only.
"""

import numpy as np
from scipy.signal import lfilter

CLEAN, FAULTY = {}, {}


def clean(f):
    CLEAN[f.__name__] = f
    return f


def faulty(f):
    FAULTY[f.__name__] = f
    return f


# ---------------------------------------------------------------- helpers


def logint(rng, low, high):
    """An integer, uniform in its logarithm, from low to high inclusive."""
    return int(np.clip(np.floor(np.exp(rng.uniform(np.log(low), np.log(high + 1)))), low, high))


def size(rng, low=300, high=4000):
    return logint(rng, low, high)


def dims(rng, low=1, high=64):
    return logint(rng, low, high), logint(rng, low, high)


def gauss(rng, n, d):
    return rng.normal(size=(n, d))


def std(a):
    """Scale columns to mean 0 and sd 1; constant columns stay."""
    s = a.std(0)
    return (a - a.mean(0)) / np.where(s > 0, s, 1)


def mix(rng, a, d):
    """d random directions of a, unit variance when a's columns are standard and independent."""
    w = rng.normal(size=(a.shape[1], d))
    return a @ (w / np.linalg.norm(w, axis=0))


def respond(rng, x, d, linear):
    """y = f(x) + independent noise; f looks at one to three standardized columns of x."""
    use = rng.permutation(x.shape[1])[: rng.integers(1, 4)]
    u = mix(rng, std(x[:, use]), d)
    if not linear:
        u = [np.sin(rng.uniform(1, 3) * u), u**2, np.tanh(2 * u), np.abs(u), u**3 / 3][rng.integers(5)]
    u = std(u) * (rng.random(d) < rng.uniform(0.3, 1))  # some columns of y know nothing
    return u + rng.uniform(0.3, 2) * gauss(rng, len(x), d)


def linked(rng, n, dx, dy):
    """Two views of a shared Gaussian latent plus noise of their own, independent rows."""
    z = gauss(rng, n, rng.integers(1, 5))
    r = rng.uniform(0.2, 3)
    return r * mix(rng, z, dx) + gauss(rng, n, dx), r * mix(rng, z, dy) + gauss(rng, n, dy)


def pair(x, y, order=None):
    o = slice(None) if order is None else order
    return {"x": np.ascontiguousarray(x[o], float), "y": np.ascontiguousarray(y[o], float)}


def lab(h, labels, order=None):
    o = slice(None) if order is None else order
    return {"h": np.ascontiguousarray(h[o], float), "labels": np.asarray(labels[o], int)}


def upto(rng, a):
    """An order by one column, ascending or descending, ties in the order they came."""
    c = a[:, rng.integers(a.shape[1])]
    return np.argsort(c if rng.random() < 0.7 else -c, kind="stable")


def ar(rng, n, d, phi, e=None):
    """Stationary AR(1) columns of unit variance."""
    e = gauss(rng, n + 1000, d) if e is None else e
    return lfilter([1], [1, -phi], e, axis=0)[-n:] * np.sqrt(1 - phi**2)


def walk(rng, n, d):
    return np.cumsum(gauss(rng, n, d), 0)


def seasons(rng, n, d, period=None):
    """Columns of one period, each with its own phase."""
    p = np.exp(rng.uniform(np.log(10), np.log(n / 4))) if period is None else period
    return np.sqrt(2) * np.sin(2 * np.pi * np.arange(n)[:, None] / p + rng.uniform(0, 2 * np.pi, d))


def trend(rng, n):
    """A linear or smooth function of the row number, mean 0 and sd 1."""
    t = np.linspace(0, 1, n)
    if rng.random() < 0.5:
        g = t * rng.choice([-1, 1])
    else:
        g = sum(rng.normal() * np.sin(2 * np.pi * rng.uniform(0.3, 3) * t + rng.uniform(0, 7)) for _ in range(3))
    return std(g[:, None])


def clear(n, sx, sy):
    """Whether each view has enough signal left if the other view is known. sx, sy: total signal to noise of each."""
    return n * min(sx / (1 + sy), sy / (1 + sx)) >= 60


def strengths(rng, n, dx, dy):
    """Signal to noise of each column of both views, in few or all columns; redrawn until `clear` holds."""
    while True:
        v = []
        for d in (dx, dy):
            k = d if rng.random() < 0.4 else min(d, rng.integers(1, 5))
            v.append(rng.uniform(0.3, 5) * (rng.permutation(d) < k))
        if clear(n, v[0].sum(), v[1].sum()):
            return v


def balanced(n, c):
    return np.sort(np.arange(n) % c)


def shuffled_labels(rng, n, c, p=None):
    """Independent labels; redrawn until every class has 20 rows."""
    while True:
        y = rng.choice(c, n, p=p)
        if np.bincount(y, minlength=c).min() >= min(20, n // (2 * c)):
            return y


def clusters(rng, y, d, sep):
    """Gaussian classes: class means of sd sep around 0, unit noise, a random common covariance."""
    means = sep * rng.normal(size=(y.max() + 1, d))
    a = np.eye(d) + rng.uniform(0, 1) * rng.normal(size=(d, d)) / np.sqrt(d)
    return means[y] + gauss(rng, len(y), d) @ a


def blocks(rng, n, low=5, high=50):
    """Scene numbers 0, 0, ... 1, 1, ... with one mean length, lengths varying about it."""
    m = rng.uniform(low, high)
    ids = np.repeat(np.arange(n), np.clip(np.round(m * rng.uniform(0.7, 1.3, n)), low, high).astype(int))
    return ids[:n]


# ---------------------------------------------------------------- clean, paired, no order


@clean
def gaussians_independent(rng):
    """x and y independent Gaussians."""
    n, (dx, dy) = size(rng), dims(rng)
    return pair(gauss(rng, n, dx), gauss(rng, n, dy))


@clean
def gaussians_correlated(rng):
    """Column pairs of correlation .05 to .999, columns mixed within a view."""
    n, d = size(rng), logint(rng, 1, 64)
    r = rng.uniform(0.05, 0.999)
    x = gauss(rng, n, d)
    return pair(x, mix(rng, r * x + np.sqrt(1 - r * r) * gauss(rng, n, d), d))


@clean
def gaussians_shared_latent(rng):
    """Two views of a few latent factors."""
    return pair(*linked(rng, size(rng), *dims(rng)))


@clean
def odd_units(rng):
    """Shared factors in columns of very different scale and offset."""
    x, y = linked(rng, size(rng), *dims(rng))

    def u(a):
        return a * 10 ** rng.uniform(-5, 5, a.shape[1]) + rng.normal(size=a.shape[1]) * 10 ** rng.uniform(-2, 4)

    return pair(u(x), u(y))


@clean
def quadratic(rng):
    """y a noisy square of directions of x."""
    n, (dx, dy) = size(rng), dims(rng)
    x = gauss(rng, n, dx)
    return pair(x, mix(rng, x, dy) ** 2 + rng.uniform(0.05, 2) * gauss(rng, n, dy))


@clean
def sine(rng):
    """y a noisy sine, one to six waves over a uniform x."""
    n, (dx, dy) = size(rng), dims(rng)
    x = rng.uniform(-1, 1, (n, dx))
    y = np.sin(np.pi * rng.uniform(1, 6) * x[:, rng.integers(dx, size=dy)])
    return pair(x, y + rng.uniform(0.05, 1) * gauss(rng, n, dy))


@clean
def xor(rng):
    """The sign of y is the product of two signs in x; each sign alone says nothing."""
    n, (dx, dy) = size(rng), dims(rng, 2)
    x, y = gauss(rng, n, dx), gauss(rng, n, dy)
    y[:, 0] = np.abs(y[:, 0]) * np.sign(x[:, 0] * x[:, 1]) + rng.uniform(0, 1) * rng.normal(size=n)
    return pair(x, y)


@clean
def rings(rng):
    """x and y the coordinates of points on noisy rings, beside noise columns."""
    n, (dx, dy) = size(rng), dims(rng, 1, 8)
    t, r = rng.uniform(0, 2 * np.pi, n), rng.integers(1, rng.integers(2, 5), n)
    x, y = gauss(rng, n, dx), gauss(rng, n, dy)
    x[:, 0], y[:, 0] = r * np.cos(t), r * np.sin(t)
    s = rng.uniform(0.02, 0.4)
    return pair(x + s * gauss(rng, n, dx), y + s * gauss(rng, n, dy))


@clean
def cubic_or_saturating(rng):
    """y a noisy cube, hyperbolic tangent or clipped copy of directions of x."""
    n, (dx, dy) = size(rng), dims(rng)
    x = gauss(rng, n, dx)
    u = mix(rng, x, dy)
    f = [u**3, np.tanh(3 * u), np.clip(u, -0.5, 0.5), np.exp(u)][rng.integers(4)]
    return pair(x, std(f) + rng.uniform(0.05, 1.5) * gauss(rng, n, dy))


@clean
def interaction(rng):
    """y noisy products of two columns of x."""
    n, (dx, dy) = size(rng), dims(rng, 2)
    x = gauss(rng, n, dx)
    y = x[:, rng.integers(dx, size=dy)] * x[:, rng.integers(dx, size=dy)]
    return pair(x, y + rng.uniform(0.05, 2) * gauss(rng, n, dy))


@clean
def heteroscedastic(rng):
    """The spread of y, and perhaps its mean, depends on x."""
    n, (dx, dy) = size(rng), dims(rng)
    x = gauss(rng, n, dx)
    u = mix(rng, x, dy)
    return pair(x, rng.uniform(0, 1) * u + np.exp(rng.uniform(0.3, 1.5) * u) * gauss(rng, n, dy))


@clean
def student_t(rng):
    """Multivariate Student t of 2 to 3 degrees, correlated between the views."""
    n, (dx, dy) = size(rng), dims(rng)
    x, y = linked(rng, n, dx, dy)
    s = np.sqrt(rng.chisquare(rng.uniform(2, 3), (n, 1)))
    return pair(x / s, y / s)


@clean
def cauchy_columns(rng):
    """Independent Cauchy columns; y leans on x in some."""
    n, (dx, dy) = size(rng), dims(rng)
    x = rng.standard_cauchy((n, dx))
    return pair(x, rng.uniform(0, 2) * x[:, rng.integers(dx, size=dy)] + rng.standard_cauchy((n, dy)))


@clean
def log_normal(rng):
    """Exponentials of linked Gaussians."""
    x, y = linked(rng, size(rng), *dims(rng))
    s = rng.uniform(0.5, 2)
    return pair(np.exp(s * std(x)), np.exp(s * std(y)))


# ---------------------------------------------------------------- clean, paired, discrete and ties


@clean
def poisson(rng):
    """Counts whose rates share a latent."""
    x, y = linked(rng, size(rng), *dims(rng))
    m = rng.uniform(-1, 3)
    return pair(rng.poisson(np.exp(m + 0.5 * std(x))), rng.poisson(np.exp(m + 0.5 * std(y))))


@clean
def binary(rng):
    """Thresholded linked Gaussians; with few columns every row has many equals."""
    x, y = linked(rng, size(rng), *dims(rng))
    t = rng.uniform(-1, 1.5)
    return pair(x > t, y > t)


@clean
def few_levels(rng):
    """Three to eight integer levels in all columns of both views."""
    x, y = linked(rng, size(rng), *dims(rng, 1, 16))
    k = rng.integers(3, 9)

    def q(a):
        return np.clip(np.floor((std(a) / 2 + 1) * k / 2), 0, k - 1)

    return pair(q(x), q(y))


@clean
def categorical_codes(rng):
    """One code in x through a noisy channel to a code in y, as integers or one-hot."""
    n, k = size(rng), rng.integers(2, 20)
    a = rng.choice(k, n, p=rng.dirichlet(np.full(k, 2.0)))
    b = np.where(rng.random(n) < rng.uniform(0.1, 0.95), rng.permutation(k)[a], rng.integers(k, size=n))
    return pair(np.eye(k)[a], np.eye(k)[b]) if rng.random() < 0.5 else pair(a[:, None], b[:, None])


@clean
def rounded(rng):
    """Linked Gaussians rounded to 0 to 2 decimals."""
    x, y = linked(rng, size(rng), *dims(rng))
    return pair(np.round(x, rng.integers(0, 3)), np.round(y, rng.integers(0, 3)))


@clean
def discrete_beside_continuous(rng):
    """Columns of counts, levels and Gaussians in both views."""
    x, y = linked(rng, size(rng), *dims(rng, 2))
    for a in (x, y):
        for j in range(a.shape[1]):
            a[:, j] = [a[:, j], np.round(a[:, j]), a[:, j] > 0, rng.poisson(np.exp(np.clip(a[:, j], -5, 3)))][
                rng.integers(4)
            ]
    return pair(x, y)


@clean
def discrete_x_continuous_y(rng):
    """x uniform on 0..k-1, y = x plus uniform or Gaussian noise, or the views swapped."""
    n, k = size(rng), rng.integers(2, 12)
    x = rng.integers(k, size=(n, 1))
    y = x + (
        rng.uniform(0, rng.uniform(0.5, 4), (n, 1)) if rng.random() < 0.5 else rng.uniform(0.1, 2) * gauss(rng, n, 1)
    )
    return pair(x, y) if rng.random() < 0.5 else pair(y, x)


@clean
def zero_inflated(rng):
    """y is 0 with a probability, else a count with x's rate; x a positive continuous rate."""
    n, d = size(rng), logint(rng, 1, 16)
    x = rng.exponential(rng.uniform(1, 5), (n, d))
    return pair(x, rng.poisson(x) * (rng.random((n, d)) > rng.uniform(0.15, 0.8)))


@clean
def constant_columns(rng):
    """Linked Gaussians with constant columns in both views."""
    x, y = linked(rng, size(rng), *dims(rng, 2))
    for a in (x, y):
        a[:, rng.permutation(a.shape[1])[: rng.integers(1, a.shape[1])]] = rng.choice([0.0, 1.0, 7.0, 0.3])
    return pair(x, y)


@clean
def tight_clusters(rng):
    """Both views near the center of one shared cluster out of 2 to 30, spread 1e-3 to 1."""
    n, (dx, dy), k = size(rng), dims(rng), rng.integers(2, 31)
    c, s = rng.integers(k, size=n), 10 ** rng.uniform(-3, 0)
    return pair(gauss(rng, k, dx)[c] + s * gauss(rng, n, dx), gauss(rng, k, dy)[c] + s * gauss(rng, n, dy))


@clean
def low_rank(rng):
    """Up to 300 columns of rank 1 to 10 plus small noise."""
    n, (dx, dy), k = size(rng), dims(rng, 16, 300), rng.integers(1, 11)
    z, s = gauss(rng, n, k), 10 ** rng.uniform(-4, -0.5)
    return pair(
        mix(rng, z, dx) + s * gauss(rng, n, dx),
        mix(rng, z + rng.uniform(0.1, 2) * gauss(rng, n, k), dy) + s * gauss(rng, n, dy),
    )


@clean
def relu_sparse(rng):
    """ReLU features of a shared latent, half to nearly all entries zero, up to 300 columns."""
    x, y = linked(rng, size(rng), *dims(rng, 4, 300))
    t = rng.uniform(0, 2)
    return pair(np.maximum(std(x) - t, 0), np.maximum(std(y) - t, 0))


# ---------------------------------------------------------------- clean, paired, sorted by one view alone

UNORDERED = dict(CLEAN)


@clean
def sorted_by_x_linear(rng):
    """Linked Gaussians sorted by a column of x."""
    x, y = linked(rng, size(rng), *dims(rng))
    return pair(x, y, upto(rng, x))


@clean
def sorted_by_x_nonlinear(rng):
    """Nonlinear response, sorted by a column of x."""
    n, (dx, dy) = size(rng), dims(rng)
    x = gauss(rng, n, dx)
    return pair(x, respond(rng, x, dy, False), upto(rng, x))


@clean
def sorted_by_y_linear_low(rng):
    """Linked Gaussians of 1 to 4 columns sorted by a column of y."""
    x, y = linked(rng, size(rng), *dims(rng, 1, 4))
    return pair(x, y, upto(rng, y))


@clean
def sorted_by_y_linear_high(rng):
    """Linked Gaussians of 16 to 64 columns sorted by a column of y."""
    x, y = linked(rng, size(rng), *dims(rng, 16, 64))
    return pair(x, y, upto(rng, y))


@clean
def sorted_by_y_nonlinear_low(rng):
    """Nonlinear response of 1 to 4 columns, sorted by a column of y."""
    n, (dx, dy) = size(rng), dims(rng, 1, 4)
    x = gauss(rng, n, dx)
    y = respond(rng, x, dy, False)
    return pair(x, y, upto(rng, y))


@clean
def sorted_by_y_nonlinear_high(rng):
    """Nonlinear response of 16 to 64 columns, sorted by a column of y."""
    n, (dx, dy) = size(rng), dims(rng, 16, 64)
    x = gauss(rng, n, dx)
    y = respond(rng, x, dy, False)
    return pair(x, y, upto(rng, y))


@clean
def sorted_by_norm_of_x(rng):
    """Sorted by the length of x; the response may depend on the length."""
    n, (dx, dy) = size(rng), dims(rng)
    x = gauss(rng, n, dx)
    y = respond(rng, x, dy, rng.random() < 0.5)
    y[:, 0] += rng.uniform(0, 2) * std(np.linalg.norm(x, axis=1, keepdims=True))[:, 0]
    return pair(x, y, np.argsort(np.linalg.norm(x, axis=1)))


@clean
def sorted_lexicographically(rng):
    """x discrete, sorted by its columns in turn (by all of x), y a noisy response."""
    n, (dx, dy) = size(rng), dims(rng, 1, 8)
    x = rng.integers(rng.integers(2, 9), size=(n, dx)).astype(float)
    y = respond(rng, x, dy, rng.random() < 0.5)
    return pair(x, np.round(y) if rng.random() < 0.5 else y, np.lexsort(x.T[::-1]))


@clean
def any_kind_sorted_by_x(rng):
    """Any of the kinds above without an order, sorted by a column of x."""
    v = UNORDERED[rng.choice(list(UNORDERED))](rng)
    return pair(v["x"], v["y"], upto(rng, v["x"]))


@clean
def any_kind_sorted_by_y(rng):
    """Any of the kinds above without an order, sorted by a column of y."""
    v = UNORDERED[rng.choice(list(UNORDERED))](rng)
    return pair(v["x"], v["y"], upto(rng, v["y"]))


# ---------------------------------------------------------------- clean, one view a series, the other fresh given it


def series(rng, n, d):
    """AR(1), a walk, a season with noise, or a trend with noise, in all columns."""
    k = rng.integers(4)
    if k == 0:
        return ar(rng, n, d, rng.uniform(0.5, 0.99))
    if k == 1:
        return walk(rng, n, d)
    s = seasons(rng, n, d) if k == 2 else trend(rng, n) * rng.normal(size=d)
    return s + rng.uniform(0.05, 1) * gauss(rng, n, d)


def series_case(rng, linear):
    n, (dx, dy) = size(rng), dims(rng)
    x = series(rng, n, dx)
    return x, respond(rng, x, dy, linear)


@clean
def x_series_y_linear(rng):
    """x autocorrelated, y linear in x plus fresh noise."""
    return pair(*series_case(rng, True))


@clean
def x_series_y_nonlinear(rng):
    """x autocorrelated, y nonlinear in x plus fresh noise."""
    return pair(*series_case(rng, False))


@clean
def y_series_x_linear(rng):
    """The mirror image: y autocorrelated, x linear in y plus fresh noise."""
    return pair(*series_case(rng, True)[::-1])


@clean
def y_series_x_nonlinear(rng):
    """The mirror image: y autocorrelated, x nonlinear in y plus fresh noise."""
    return pair(*series_case(rng, False)[::-1])


@clean
def series_beside_independent(rng):
    """One view autocorrelated, the other independent of it and fresh (Gaussian or discrete)."""
    n, (dx, dy) = size(rng), dims(rng)
    x = series(rng, n, dx)
    y = gauss(rng, n, dy) if rng.random() < 0.6 else rng.integers(rng.integers(2, 6), size=(n, dy))
    return pair(x, y) if rng.random() < 0.5 else pair(y, x)


@clean
def x_discrete_chain_y_fresh(rng):
    """x a slow Markov chain of codes, y its code's mean plus fresh noise."""
    n, dy, k = size(rng), logint(rng, 1, 64), rng.integers(2, 9)
    new = rng.random(n) < 1 / rng.uniform(3, 30)
    new[0] = True
    c = rng.integers(k, size=n)[new][np.cumsum(new) - 1]
    return pair(c[:, None], rng.uniform(0.2, 3) * gauss(rng, k, dy)[c] + gauss(rng, n, dy))


@clean
def x_series_y_heteroscedastic(rng):
    """x autocorrelated; the spread of the fresh noise in y depends on x."""
    n, (dx, dy) = size(rng), dims(rng)
    x = series(rng, n, dx)
    u = std(x)[:, rng.integers(dx, size=dy)]
    return pair(x, rng.uniform(0, 1) * u + np.exp(rng.uniform(0.3, 1) * u) * gauss(rng, n, dy))


@clean
def x_index_y_fresh(rng):
    """An index column in x alone; y fresh given x's other columns."""
    n, (dx, dy) = size(rng), dims(rng)
    x = gauss(rng, n, dx)
    y = respond(rng, x, dy, rng.random() < 0.5)
    return pair(np.c_[np.arange(n), x], y)


# ---------------------------------------------------------------- clean, labelled


def label_case(rng, sep=None, d=None, c=None, p=None):
    n = size(rng)
    c = int(rng.integers(2, 11)) if c is None else c
    d = logint(rng, 1, 64) if d is None else d
    y = shuffled_labels(rng, n, c, p)
    return clusters(rng, y, d, rng.uniform(0.3, 3) if sep is None else sep), y


@clean
def labels_clusters_shuffled(rng):
    """Gaussian classes, rows in random order."""
    return lab(*label_case(rng))


@clean
def labels_sorted_by_class(rng):
    """Gaussian classes, rows sorted by class, the classes in any order."""
    h, y = label_case(rng, d=logint(rng, 1, 300))
    return lab(h, y, np.argsort(rng.permutation(y.max() + 1)[y], kind="stable"))


@clean
def labels_sorted_by_h(rng):
    """Overlapping Gaussian classes sorted by a column of h."""
    h, y = label_case(rng, sep=rng.uniform(0.2, 1.2))
    return lab(h, y, upto(rng, h))


@clean
def labels_in_runs(rng):
    """Labels a slow Markov chain, h fresh given the class."""
    n, c, d = size(rng), int(rng.integers(2, 6)), logint(rng, 1, 64)
    while True:
        new = rng.random(n) < 1 / rng.uniform(3, 15)
        new[0] = True
        y = rng.integers(c, size=n)[new][np.cumsum(new) - 1]
        if np.bincount(y, minlength=c).min() >= 20:
            return lab(clusters(rng, y, d, rng.uniform(0.1, 2)), y)


@clean
def labels_unbalanced(rng):
    """Classes of very different size, shuffled or sorted by class."""
    n, c = size(rng, 800), int(rng.integers(2, 7))
    p = np.exp(-rng.uniform(0.2, 0.6) * np.arange(c))
    y = shuffled_labels(rng, n, c, p / p.sum())
    h = clusters(rng, y, logint(rng, 1, 64), rng.uniform(0.3, 2))
    return lab(h, y, np.argsort(y, kind="stable") if rng.random() < 0.5 else None)


@clean
def labels_collapsed(rng):
    """Tight classes (spread 1e-4 to 1e-1 of the gaps), shuffled or sorted by class."""
    n, c, d = size(rng), int(rng.integers(2, 11)), logint(rng, 2, 300)
    y = shuffled_labels(rng, n, c)
    h = rng.normal(size=(c, d))[y] + 10 ** rng.uniform(-4, -1) * gauss(rng, n, d)
    return lab(h, y, np.argsort(y, kind="stable") if rng.random() < 0.5 else None)


@clean
def labels_collapsed_noisy(rng):
    """Tight clusters, a share of the labels tossed anew row by row."""
    n, c, d = size(rng), int(rng.integers(2, 8)), logint(rng, 2, 64)
    k = shuffled_labels(rng, n, c)
    y = np.where(rng.random(n) < rng.uniform(0.05, 0.5), rng.integers(c, size=n), k)
    return lab(rng.normal(size=(c, d))[k] + 10 ** rng.uniform(-3, -1) * gauss(rng, n, d), y)


@clean
def labels_weak(rng):
    """Classes that hardly differ, shuffled or sorted by class."""
    h, y = label_case(rng, sep=rng.uniform(0.02, 0.2))
    return lab(h, y, np.argsort(y, kind="stable") if rng.random() < 0.5 else None)


@clean
def labels_discrete_h(rng):
    """Counts or binary features by class, many equal rows, shuffled or sorted by class."""
    h, y = label_case(rng, sep=rng.uniform(0.1, 1), d=logint(rng, 1, 24))
    h = rng.poisson(np.exp(np.clip(h, -5, 3))) if rng.random() < 0.5 else h > 0
    return lab(h, y, np.argsort(y, kind="stable") if rng.random() < 0.5 else None)


@clean
def labels_relu(rng):
    """ReLU-sparse features of Gaussian classes, up to 300 columns, shuffled or sorted by class."""
    h, y = label_case(rng, d=logint(rng, 16, 300), sep=rng.uniform(0.1, 1))
    h = np.maximum(h - rng.uniform(0, 2), 0)
    return lab(h, y, np.argsort(y, kind="stable") if rng.random() < 0.5 else None)


@clean
def labels_heavy_tails(rng):
    """Student-t classes (1.5 to 3 degrees), shuffled or sorted by a column of h."""
    h, y = label_case(rng, sep=rng.uniform(0.3, 1.5))
    h = h / np.sqrt(rng.chisquare(rng.uniform(1.5, 3), (len(h), 1)))
    return lab(h, y, upto(rng, h) if rng.random() < 0.5 else None)


@clean
def labels_independent(rng):
    """Labels that are independent of h, shuffled, sorted by class or by a column of h."""
    h, y = label_case(rng, sep=0)
    return lab(h, y, [None, np.argsort(y, kind="stable"), upto(rng, h)][rng.integers(3)])


@clean
def labels_coin_beside_series(rng):
    """Coin-toss labels beside autocorrelated h."""
    n = size(rng)
    return lab(series(rng, n, logint(rng, 1, 64)), shuffled_labels(rng, n, int(rng.integers(2, 6))))


@clean
def labels_fresh_given_series(rng):
    """h autocorrelated, the label of each row tossed afresh with odds linear in h."""
    n = size(rng)
    h = series(rng, n, logint(rng, 1, 64))
    u = std(mix(rng, std(h[:, rng.permutation(h.shape[1])[:3]]), 1))[:, 0]
    return lab(h, rng.random(n) < 1 / (1 + np.exp(-rng.uniform(0.3, 3) * u)))


# ---------------------------------------------------------------- faulty, paired


@faulty
def walks(rng):
    """Two independent random walks."""
    n, (dx, dy) = size(rng), dims(rng)
    return pair(walk(rng, n, dx), walk(rng, n, dy))


@faulty
def ar_both(rng):
    """AR(1) of .8 to .99 in both; half of the time the views' innovations are correlated (to .7)."""
    n, (dx, dy) = size(rng), dims(rng)
    ex, r = gauss(rng, n + 1000, dx), rng.uniform(0, 0.7) * (rng.random() < 0.5)
    ey = r * mix(rng, ex, dy) + np.sqrt(1 - r * r) * gauss(rng, n + 1000, dy)
    return pair(ar(rng, n, dx, rng.uniform(0.8, 0.99), ex), ar(rng, n, dy, rng.uniform(0.8, 0.99), ey))


@faulty
def sliding_windows(rng):
    """Windows of 8 to 64 of two independent series (white or AR), stride 1 to a quarter of the window."""
    n, w = size(rng), logint(rng, 8, 64)
    s = int(rng.integers(1, w // 4 + 1))

    def cut(a):
        return np.lib.stride_tricks.sliding_window_view(a[:, 0], w)[::s][:n]

    phi = rng.uniform(0, 0.9) * (rng.random() < 0.5)
    return pair(cut(ar(rng, n * s + w, 1, phi)), cut(ar(rng, n * s + w, 1, phi)))


@faulty
def smoothed_noise(rng):
    """Moving averages (5 to 40 rows) of independent noise in both views."""
    n, (dx, dy), w = size(rng), dims(rng), rng.integers(5, 41)

    def f(d):
        return lfilter(np.ones(w) / np.sqrt(w), [1], gauss(rng, n + w, d), axis=0)[w:]

    return pair(f(dx), f(dy))


@faulty
def trends(rng):
    """A linear or smooth trend in each view, .3 to 5 times the noise's variance in its columns."""
    n, (dx, dy) = size(rng), dims(rng)
    sx, sy = strengths(rng, n, dx, dy)

    def sign(d):
        return rng.choice([-1, 1], d)

    return pair(
        trend(rng, n) * sign(dx) * np.sqrt(sx) + gauss(rng, n, dx),
        trend(rng, n) * sign(dy) * np.sqrt(sy) + gauss(rng, n, dy),
    )


@faulty
def seasonal_both(rng):
    """A season in each view (periods 10 to n/4, the same or not) plus noise."""
    n, (dx, dy) = size(rng), dims(rng)
    sx, sy = strengths(rng, n, dx, dy)
    p = np.exp(rng.uniform(np.log(10), np.log(n / 4), 2))
    p[1] = p[0] if rng.random() < 0.5 else p[1]
    return pair(
        seasons(rng, n, dx, p[0]) * np.sqrt(sx) + gauss(rng, n, dx),
        seasons(rng, n, dy, p[1]) * np.sqrt(sy) + gauss(rng, n, dy),
    )


@faulty
def index_in_both(rng):
    """An index column in both views (any start, step and place) beside noise."""
    n, (dx, dy) = size(rng), dims(rng)

    def f(d):
        return np.insert(
            gauss(rng, n, d),
            rng.integers(d + 1),
            rng.integers(0, 1000) + np.arange(n) * rng.choice([1, 1, 10, 0.01]),
            axis=1,
        )

    return pair(f(dx), f(dy))


@faulty
def timestamps_in_both(rng):
    """Time stamps with irregular gaps of their own in both views, beside noise."""
    n, (dx, dy) = size(rng), dims(rng)

    def f(d):
        return np.c_[1.6e9 + np.cumsum(rng.exponential(rng.uniform(1, 1000), n)), gauss(rng, n, d)]

    return pair(f(dx), f(dy))


@faulty
def tiled(rng):
    """Rows 2 to 20 times (tiled, each in turn, or shuffled) plus relative noise 1e-12 to 1e-3."""
    n, (dx, dy), k = size(rng), dims(rng), int(rng.integers(2, 21))
    x, y = linked(rng, n // k, dx, dy) if rng.random() < 0.5 else (gauss(rng, n // k, dx), gauss(rng, n // k, dy))
    i = [np.tile(np.arange(n // k), k), np.repeat(np.arange(n // k), k), rng.permutation(n // k * k) % (n // k)][
        rng.integers(3)
    ]
    s = 10 ** rng.uniform(-12, -3)
    return pair(x[i] + s * gauss(rng, len(i), dx), y[i] + s * gauss(rng, len(i), dy))


@faulty
def bootstrap(rng):
    """n draws with replacement from n/2 to n/4 continuous rows, exactly equal."""
    n, (dx, dy) = size(rng), dims(rng)
    x, y = linked(rng, int(n / rng.uniform(2, 4)), dx, dy)
    return pair(x, y, rng.integers(len(x), size=n))


@faulty
def videos(rng):
    """Blocks of 5 to 50 frames around a scene's own x and y (random effects in both views)."""
    n, (dx, dy) = size(rng, 600), dims(rng)
    b = blocks(rng, n)
    u, v = gauss(rng, n, dx), gauss(rng, n, dy)
    s = 10 ** rng.uniform(-1.5, 0)  # frames' noise against scenes' spread
    return pair(u[b] + s * gauss(rng, n, dx), v[b] + s * gauss(rng, n, dy))


@faulty
def regimes(rng):
    """Means that jump at times of their own in each view, at least eight stretches each."""
    n, (dx, dy) = size(rng), dims(rng)

    def view(d):
        stay = rng.uniform(8, n / 8)
        cuts = np.unique(
            np.round(np.arange(stay, n, stay) + rng.uniform(-0.4, 0.4, len(np.arange(stay, n, stay))) * stay).astype(
                int
            )
        )
        state = np.searchsorted(cuts, np.arange(n), side="right")
        means = rng.uniform(0.7, 3) * gauss(rng, state.max() + 1, d)
        return means[state] + gauss(rng, n, d)

    return pair(view(dx), view(dy))


# ---------------------------------------------------------------- faulty, labelled


@faulty
def labels_near_copies(rng):
    """Rows of many columns with coin-toss labels, each row and its label 2 to 20 times plus tiny noise."""
    n, d, k = size(rng), logint(rng, 8, 300), int(rng.integers(2, 21))
    m = max(n // k, 40)
    h, y = gauss(rng, m, d), rng.permutation(np.arange(m) % 2)
    i = [np.tile(np.arange(m), k), np.repeat(np.arange(m), k), rng.permutation(m * k) % m][rng.integers(3)][:4000]
    return lab(h[i] + 10 ** rng.uniform(-12, -3) * gauss(rng, len(i), d), y[i])


@faulty
def labels_sorted_drift(rng):
    """Labels sorted by class while the rows drift through the whole set; clear within classes."""
    n, c, d = size(rng), int(rng.integers(2, 6)), logint(rng, 1, 64)
    y, g = balanced(n, c), [trend(rng, n), std(walk(rng, n, 1))][rng.integers(2)][:, 0]
    within = np.mean([g[y == k].var() for k in range(c)])
    s = rng.uniform(0.3, 3) * (rng.permutation(d) < (d if rng.random() < 0.4 else rng.integers(1, 5)))
    drift = g[:, None] / np.sqrt(within) * np.sqrt(s) * rng.choice([-1, 1], d)
    return lab(drift + rng.uniform(0, 1) * rng.normal(size=(c, d))[y] + gauss(rng, n, d), y)


@faulty
def labels_sorted_index(rng):
    """Labels sorted by class beside an index column in h; the rest noise."""
    n, c, d = size(rng), int(rng.integers(2, 11)), logint(rng, 1, 64)
    return lab(
        np.insert(gauss(rng, n, d), rng.integers(d + 1), np.arange(n) * rng.choice([1, 10, 0.01]), axis=1),
        balanced(n, c),
    )


def scenes(rng):
    n, d = size(rng, 800), logint(rng, 2, 128)
    b = blocks(rng, n)
    m = b[-1] + 1
    c = int(rng.integers(2, min(6, m // 4 + 1)))
    y = rng.permutation(np.arange(m) % c)
    h = rng.uniform(0, 0.7) * rng.normal(size=(c, d))[y] + gauss(rng, m, d)
    return h[b] + 10 ** rng.uniform(-1.5, -0.1) * gauss(rng, n, d), y[b]


@faulty
def labels_scenes(rng):
    """Blocks of 5 to 50 frames that share a label and resemble each other, scenes in any order."""
    return lab(*scenes(rng))


@faulty
def labels_scenes_sorted(rng):
    """The same with the scenes sorted by class, frames still side by side."""
    h, y = scenes(rng)
    return lab(h, y, np.argsort(y, kind="stable"))


@faulty
def labels_ar_both(rng):
    """Autocorrelated h beside labels that are bands of another AR series."""
    n, c = size(rng), int(rng.integers(2, 5))
    u = ar(rng, n, 1, rng.uniform(0.9, 0.99))[:, 0]
    y = np.searchsorted(np.quantile(u, np.arange(1, c) / c), u)
    return lab(ar(rng, n, logint(rng, 1, 64), rng.uniform(0.8, 0.99)), y)
