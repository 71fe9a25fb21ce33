"""The handler of scikit-learn's estimators passes the suite."""

from __future__ import annotations

import collections
import subprocess
import sys

import numpy as np
import pytest

from blobstore import BlobStore, UntrustedTypeError
from blobstore.digest import new_digest
from blobstore.handlers.pickle import digest_object
from blobstore.protocols import WriteOptions
from blobstore.registry import HandlerSet
from blobstore.testing.handler import HandlerSuite

pytest.importorskip("skops")

from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

from blobstore.handlers.skops import SkopsHandler

X = np.random.default_rng(0).standard_normal((80, 5))
Y = (X[:, 0] > 0).astype(int)


def content(obj):
    hasher = new_digest()
    digest_object(hasher, obj, [])
    return hasher.hexdigest()


class TestSkopsHandler(HandlerSuite):
    def make_handler(self):
        return SkopsHandler()

    def objects(self):
        return {
            "plain": LogisticRegression(C=0.5),
            "fitted": SVC(kernel="poly").fit(X, Y),
            "pipeline": make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y),
            "forest": RandomForestClassifier(5, random_state=1).fit(X, Y),
            "clusters": KMeans(3, n_init=1, random_state=1).fit(X),
            "function": FunctionTransformer(np.log1p),
        }

    def equal(self, one, other):
        return type(one) is type(other) and content(one) == content(other)

    def spoil(self, obj):
        obj.spoilt = True

    def same(self):
        return {"fits": (SVC().fit(X, Y), SVC().fit(X, Y))}

    def different(self):
        return {"parameters": (SVC(C=1), SVC(C=2)), "fitted": (SVC(), SVC().fit(X, Y))}

    def refused(self):
        odd = SVC()
        odd.note = (i for i in ())
        return {"no estimator": 3, "generator": odd}


def test_predictions_are_those_of_the_stored_model(tmp_path):
    with BlobStore(tmp_path) as store:
        model = RandomForestClassifier(5, random_state=1).fit(X, Y)
        store.put(model, key="m", metadata={"accuracy": 1.0})
        assert np.array_equal(store["m"].predict_proba(X), model.predict_proba(X))
        assert store.get_metadata("m")["handler"] == "skops"


def test_types_of_others_are_asked_for(tmp_path):
    with BlobStore(tmp_path) as store:
        store.put(SVC().fit(X, Y), key="harmless")
        store.put(RandomForestClassifier(2).fit(X, Y), key="forest")
    keys = [b"a key that nobody else has, ever"]
    with BlobStore(tmp_path, signing_keys=keys) as store:
        assert store["harmless"].predict(X).shape == (80,)
        with pytest.raises(UntrustedTypeError, match=r"sklearn\.tree\._tree\.Tree"):
            store["forest"]
    with BlobStore(tmp_path, signing_keys=keys, trusted_types=["sklearn.*"]) as store:
        assert len(store["forest"].estimators_) == 2


@pytest.mark.parametrize("note", [1j, collections.deque([1, 2])], ids=["refused", "emptied"])
def test_what_skops_would_change_is_pickled(tmp_path, note):
    """It refuses complex numbers, and would give back an empty deque."""
    with BlobStore(tmp_path) as store:
        model = SVC()
        model.note = note
        store.put(model, key="m")
        assert store.get_metadata("m")["handler"] == "pickle"
        assert store["m"].note == note


def test_without_skops_estimators_are_pickled_and_reading_says_what_to_install(tmp_path):
    with BlobStore(tmp_path) as store:
        store.put(SVC(), key="skops")
    code = f"""
import sys
sys.modules["skops"] = sys.modules["skops.io"] = None
from sklearn.svm import SVC
from blobstore import BlobStore, MissingDependencyError
with BlobStore({str(tmp_path)!r}) as store:
    store.put(SVC(), key="pickle")
    assert store.get_metadata("pickle")["handler"] == "pickle"
    try:
        store["skops"]
    except MissingDependencyError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "blobstore[skops]" in done.stdout


def test_who_stores_estimators():
    assert HandlerSet().plan(SVC(), WriteOptions()).handler.name == "skops"
