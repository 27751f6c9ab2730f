import json

import numpy as np
import pytest

from saejax.activations.extract import ExtractConfig, extract
from saejax.activations.store import Store
from saejax.demo import shipped
from saejax.features.sources import RawHook
from saejax.report.examples import corpus_of, snippets, texts_of, windows_around
from saejax.text.corpus import CorpusConfig

HOOK = "mlp_hidden.0"
TEXTS = [
    "Ein König über den Flüssen.",
    "The table of the kings stood by a river, and the river ran.",
    "Zoë’s naïve café.",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("examples")
    file = root / "text.jsonl"
    file.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    config = ExtractConfig(
        model=shipped("seed0"), hooks=(HOOK,), corpus=CorpusConfig(str(file)), out=root / "store",
        context=16, batch=2, shard_tokens=32,
    )  # fmt: skip
    return Store.open(extract(config))


@pytest.mark.parametrize("document", range(3))
def test_a_window_wide_enough_shows_the_whole_document(store: Store, document: int) -> None:
    rows = np.flatnonzero(store.ledger(0, store.rows)["document"] == document)
    window = windows_around(store, [int(rows[3])], 1000)
    texts = texts_of(corpus_of(store), {document})
    assert texts == {document: TEXTS[document]}
    shown = snippets(RawHook.open(store.path, HOOK), store, texts, 5, window)[0]
    assert "".join(token.text for token in shown.tokens) == TEXTS[document]
    assert [token.peak for token in shown.tokens].index(True) == 2  # the BOS row is not shown


def test_a_window_is_cut_at_its_reach_and_at_its_document(store: Store) -> None:
    columns = store.ledger(0, store.rows)
    rows = np.flatnonzero((columns["document"] == 1) & ~columns["special"])
    middle, first = windows_around(store, [int(rows[6]), int(rows[0])], 3)
    assert middle.rows.tolist() == rows[3:10].tolist()
    assert first.rows.tolist() == rows[:4].tolist()
    assert windows_around(store, [-1, -1], 3) == []


def test_strength_is_the_share_of_the_largest_value_shown(store: Store) -> None:
    source = RawHook.open(store.path, HOOK)
    columns = store.ledger(0, store.rows)
    rows = np.flatnonzero((columns["document"] == 1) & ~columns["special"])
    values = store.gather(HOOK, rows)[:, 9]
    peak = int(rows[values.argmax()])
    shown = snippets(source, store, {1: TEXTS[1]}, 9, windows_around(store, [peak], 1000))[0]
    np.testing.assert_allclose([token.activation for token in shown.tokens], values, rtol=1e-6)
    np.testing.assert_allclose(
        [token.strength for token in shown.tokens], np.maximum(values, 0) / values.max(), rtol=1e-5
    )
    assert next(token for token in shown.tokens if token.peak).strength == 1
