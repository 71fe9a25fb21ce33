"""Train three models on real data, store them with what they scored, find the best, use it.

Run it from a fresh checkout with the first command of the README. It writes to a temporary folder,
or to the folder that is given as its argument.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from blobstore import BlobStore

CANDIDATES = {
    "logistic": LogisticRegression(C=0.01, max_iter=500),
    "neighbours": KNeighborsClassifier(n_neighbors=5),
    "support-vectors": SVC(C=10.0, gamma=0.001),
}


def store_data(store: BlobStore) -> None:
    """Keep what the models are made from: an array of features, and a table."""
    digits = load_digits()
    store.put(
        digits.data,
        key="data/digits/features",
        metadata={"source": "scikit-learn digits", "rows": len(digits.data), "kind": "features"},
    )
    store.put(digits.target, key="data/digits/labels", metadata={"kind": "labels"})
    table: pd.DataFrame = load_diabetes(as_frame=True).frame
    store.put(
        table,
        key="data/diabetes",
        metadata={"source": "scikit-learn diabetes", "rows": len(table), "kind": "table"},
    )


def split(store: BlobStore) -> list[np.ndarray]:
    """The same split each time: features for training and test, labels for training and test."""
    features, labels = store["data/digits/features"], store["data/digits/labels"]
    parts: list[np.ndarray] = train_test_split(
        features, labels, test_size=0.3, random_state=0, stratify=labels
    )
    return parts


def train(store: BlobStore) -> None:
    """Fit each candidate, and store it with its scores and its settings."""
    train_x, test_x, train_y, test_y = split(store)
    for name, model in CANDIDATES.items():
        model.fit(train_x, train_y)
        predicted = model.predict(test_x)
        store.put(
            model,
            key=f"models/digits/{name}",
            metadata={
                "accuracy": accuracy_score(test_y, predicted),
                "f1": f1_score(test_y, predicted, average="macro"),
                "hyperparameters": model.get_params(),
                "trained_on": "data/digits/features",
                "deployed": False,
            },
        )


def show(store: BlobStore) -> str:
    """Print the models, the best first, from the index alone; returns the best one's key."""
    models = list(store.query(prefix="models/digits/", order_by="-f1"))
    print(f"{'model':<32}{'F1':>8}{'accuracy':>10}{'stored':>12}")
    print("-" * 62)
    for entry in models:
        scores = entry.metadata
        size = f"{entry.size:,} B"
        print(f"{entry.key:<32}{scores['f1']:>8.4f}{scores['accuracy']:>10.4f}{size:>12}")
    return models[0].key


def use(store: BlobStore, key: str) -> None:
    """Load the best model in place of the one that was trained, and check what it predicts."""
    _, test_x, _, test_y = split(store)
    model = store[key]
    accuracy = accuracy_score(test_y, model.predict(test_x))
    promised = store.entry(key).metadata["accuracy"]
    if accuracy != promised:
        raise SystemExit(f"{key} predicts with {accuracy}, not with {promised} as stored")
    store.update_metadata(key, {"deployed": True})
    right = round(accuracy * len(test_y))
    print(f"\nbest: {key}, loaded again: {right} of {len(test_y)} test digits right, as stored")
    print(f"deployed: {', '.join(store.list(metadata_filter={'deployed': True}))}")
    table = store["data/diabetes"]
    print(
        f"data/diabetes: {type(table).__name__} of {table.shape[0]} rows, {table.shape[1]} columns"
    )


def main() -> None:
    """Run the whole story and say how long it took."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "store"
    started = time.perf_counter()
    with BlobStore(folder, backend="sqlite") as store:
        store_data(store)
        train(store)
        use(store, show(store))
        facts = store.stats()
    took = time.perf_counter() - started
    print(f"{facts['entries']} objects, {facts['bytes']:,} bytes in {folder}, {took:.1f} s")


if __name__ == "__main__":
    main()
