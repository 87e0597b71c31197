"""k-means in whole numbers: against plain loops, with and without room, the same whatever the order of sums."""

import numpy as np
import pytest

from trainer.clusters import Clusters, kmeans


def blobs(sizes, width=6, seed=0, spread=0.05):
    """Points around centres that are far apart, and which each is of."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((len(sizes), width))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = random.permutation(len(labels))
    points = centres[labels] + spread * random.standard_normal((len(labels), width))
    return points[order], labels[order]


def pairs(labels):
    return labels[:, None] == labels[None]


def test_blobs_are_found_and_every_cluster_has_a_point():
    points, truth = blobs([30, 5, 12, 50])
    found = kmeans(points, 4, seed=1)
    assert isinstance(found, Clusters)
    assert np.array_equal(pairs(found.labels), pairs(truth))
    assert sorted(set(found.labels.tolist())) == [0, 1, 2, 3]
    for n in range(4):
        assert found.centres[n] == pytest.approx(points[found.labels == n].mean(0), abs=1e-3)


def test_every_point_is_with_its_nearest_centre():
    points = np.random.default_rng(3).standard_normal((200, 5))
    found = kmeans(points, 7, seed=2)
    far = ((points[:, None] - found.centres[None]) ** 2).sum(-1)
    assert (far[np.arange(200), found.labels] <= far.min(1) + 1e-2).all()


@pytest.mark.parametrize("cap", [50, 57, 80])
def test_no_cluster_holds_more_than_its_cap(cap):
    points, _ = blobs([160, 20, 10, 10])
    sizes = np.bincount(kmeans(points, 4, seed=0, cap=cap).labels)
    assert sizes.sum() == 200
    assert sizes.max() <= cap


def test_a_cap_that_binds_nobody_changes_nothing():
    points, _ = blobs([30, 5, 12, 50])
    free, capped = kmeans(points, 4, seed=1), kmeans(points, 4, seed=1, cap=97)
    assert np.array_equal(free.labels, capped.labels)


def test_the_order_of_sums_is_of_no_account():
    """Another layout in memory is another order of adding in BLAS; whole numbers do not care."""
    points = np.random.default_rng(5).standard_normal((300, 64)).astype(np.float32)
    wide = np.zeros((300, 200), np.float32)
    wide[:, ::-3][:, :64] = points
    a, b = kmeans(points, 9, seed=4), kmeans(np.asfortranarray(wide[:, ::-3][:, :64]), 9, seed=4)
    assert np.array_equal(a.labels, b.labels)
    assert np.array_equal(a.centres, b.centres)


def test_the_clusters_are_those_written_down():
    """Golden: a change here is a change of every plan that is made from clusters."""
    points = np.array([[(i * 7 + j * 3) % 11 - 5 for j in range(3)] for i in range(12)], dtype=float)
    assert kmeans(points, 3, seed=0).labels.tolist() == [2, 1, 2, 0, 1, 2, 0, 1, 2, 0, 2, 2]


def test_points_that_are_alike_make_fewer_clusters():
    assert kmeans(np.ones((5, 2)), 3, seed=0).labels.tolist() == [0] * 5
    assert kmeans(np.zeros((4, 2)), 2, seed=0, cap=4).centres.tolist() == [[0, 0]]
    assert np.bincount(kmeans(np.ones((5, 2)), 3, seed=0, cap=2).labels).max() == 2
    two = np.array([[0.0, 1], [5, 1], [0, 1]])
    assert len(kmeans(two, 3, seed=7).centres) == 2


@pytest.mark.parametrize(("points", "k", "cap", "says"), [
    (np.ones((10, 2)), 3, 3, "raise cap or k"), (np.ones((0, 2)), 3, None, "at least one"),
    (np.ones((4, 2)), 0, None, "at least one"), (np.array([[1.0, np.nan]]), 1, None, "not finite"),
])  # fmt: skip
def test_what_cannot_be_clustered_is_refused(points, k, cap, says):
    with pytest.raises(ValueError, match=says):
        kmeans(points, k, 0, cap=cap)
