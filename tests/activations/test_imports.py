import dataclasses
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from made_extractions import make_model
from made_imports import (
    BOS,
    COLUMN,
    HOOK,
    INTEGERS,
    MATRIX,
    PAD,
    cached_by_saelens,
    config_of,
    imported,
    lists,
    normal,
    save_npy,
    save_to_disk,
    token_ids,
    write_arrow,
    write_chunk,
)
from made_stores import files_of, manifest_without_times
from safetensors.numpy import save_file

from saejax import artifacts, cli
from saejax.activations.imports import ImportConfig, files, import_activations, run
from saejax.activations.store import Store, aligned
from saejax.activations.writer import StoreWriter, committed_shards
from saejax.errors import InputError
from saejax.models import load
from saejax.report.examples import corpus_of
from saejax.storage import Folder


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read so few rows at once that files, texts, blocks and shards end at different places."""
    for room in ("npy", "safetensors_chunks", "arrow"):
        monkeypatch.setattr(f"saejax.activations.imports.{room}.BLOCK_ROWS", 10)


def all_rows(store: Store) -> np.ndarray:
    return store.read(HOOK, 0, store.rows)


def all_of(store: Store, column: str) -> list[int]:
    return store.ledger(0, store.rows, [column])[column].tolist()


# .npy


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("kept_as", ["float32", "bfloat16"])
def test_a_matrix_comes_back_exactly(tmp_path: Path, dtype: str, kept_as: str) -> None:
    x = normal(45, 3)
    source = save_npy(tmp_path / "x", {"x": x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)})
    store = imported(source / "x.npy", tmp_path / "store", dtype=kept_as)
    assert (store.rows, store.width(HOOK), store.manifest["facts"]["dtype"]) == (45, 3, kept_as)
    np.testing.assert_array_equal(all_rows(store), x)


def test_columns_of_a_fortran_array_stay_columns(tmp_path: Path) -> None:
    x = normal(45, 3)
    np.testing.assert_array_equal(
        all_rows(imported(save_npy(tmp_path / "x", [np.asfortranarray(x)]), tmp_path / "store")), x
    )


def test_files_are_documents_in_the_order_of_their_names(tmp_path: Path) -> None:
    parts = {"b": normal(7, 3, seed=1), "a10": normal(25, 3, seed=2), "a2": normal(13, 3, seed=3)}
    source = save_npy(tmp_path / "x", parts)
    (source / "notes.txt").write_text("beside")
    store = imported(source, tmp_path / "store")
    np.testing.assert_array_equal(all_rows(store), np.concatenate([parts["a10"], parts["a2"], parts["b"]]))
    assert all_of(store, "document") == [0] * 25 + [1] * 13 + [2] * 7
    assert all_of(store, "position") == [*range(25), *range(13), *range(7)]
    facts = store.manifest["facts"]
    assert [file["name"] for file in facts["files"]] == ["a10.npy", "a2.npy", "b.npy"]
    for file in facts["files"]:
        content = source / file["name"]
        assert (file["bytes"], file["sha256"]) == (content.stat().st_size, artifacts.file_sha256(content))


def test_rows_without_tokens_claim_none(tmp_path: Path) -> None:
    store = imported(save_npy(tmp_path / "x", [normal(20, 3)]), tmp_path / "store")
    for column, value in (("token_id", -1), ("char_start", 0), ("char_end", 0), ("special", False)):
        assert all_of(store, column) == [value] * 20
    assert (store.manifest["facts"]["has_tokens"], store.manifest["facts"]["runtime"]) == (False, "imported")
    with pytest.raises(InputError, match=rf"store {store.path} was imported without its text; extract it"):
        corpus_of(store)


# safetensors


def test_tensors_of_a_named_key_are_rows(tmp_path: Path) -> None:
    parts = [normal(23, 3, seed=seed) for seed in range(2)]
    for number, x in enumerate(parts):
        save_file({"x": x, "other": normal(1, 1)}, tmp_path / f"part-{number}.safetensors")
    store = imported(tmp_path, tmp_path / "store", key="x")
    np.testing.assert_array_equal(all_rows(store), np.concatenate(parts))
    assert all_of(store, "document") == [0] * 23 + [1] * 23
    assert set(all_of(store, "token_id")) == {-1}
    with pytest.raises(InputError, match="has no tensor activation, only other, x; name one by --key"):
        imported(tmp_path, tmp_path / "again")


def test_the_only_tensor_needs_no_key(tmp_path: Path) -> None:
    save_file({"h": normal(9, 3)}, tmp_path / "h.safetensors")
    store = imported(tmp_path / "h.safetensors", tmp_path / "store")
    assert store.manifest["facts"]["hooks"] == {HOOK: {"width": 3, "module_path": "h"}}
    np.testing.assert_array_equal(all_rows(store), normal(9, 3))


CHUNKS = ["shard-2-chunk-00000000", "shard-2-chunk-00000001", "shard-10-chunk-00000000"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_texts_of_llamascopium_lose_what_the_mask_leaves_out(tmp_path: Path, dtype: torch.dtype) -> None:
    x, ids = normal(9, 6, 4), token_ids(9, 6)
    assert (ids == PAD).any()
    for number, name in enumerate(CHUNKS):
        of = slice(3 * number, 3 * number + 3)
        write_chunk(tmp_path / f"{name}.safetensors", torch.from_numpy(x[of]).to(dtype), ids[of])
    store = imported(tmp_path, tmp_path / "store")
    text, position = np.nonzero((ids != PAD) & (ids != BOS))
    np.testing.assert_array_equal(all_rows(store), x[text, position])
    assert all_of(store, "document") == text.tolist()
    assert all_of(store, "position") == position.tolist()
    assert all_of(store, "token_id") == ids[text, position].tolist()
    assert [file["name"].split(".")[0] for file in store.manifest["facts"]["files"]] == CHUNKS


def test_flat_rows_of_llamascopium_are_a_document_a_file(tmp_path: Path) -> None:
    x, ids = normal(8, 6, 4), token_ids(8, 6)
    kept = (ids != PAD) & (ids != BOS)
    for number in range(2):
        of = slice(4 * number, 4 * number + 4)
        write_chunk(tmp_path / f"chunk-{number:08d}.safetensors", torch.from_numpy(x[of]), ids[of], flat=True)
    store = imported(tmp_path, tmp_path / "store")
    counts = [int(kept[:4].sum()), int(kept[4:].sum())]
    np.testing.assert_array_equal(all_rows(store), x[kept])
    assert all_of(store, "token_id") == ids[kept].tolist()
    assert all_of(store, "document") == [0] * counts[0] + [1] * counts[1]
    assert all_of(store, "position") == [*range(counts[0]), *range(counts[1])]


def test_stacked_batches_of_texts_are_the_texts(tmp_path: Path) -> None:
    x, ids = normal(6, 5, 4), token_ids(6, 5)
    write_chunk(tmp_path / "3" / "chunk-0.safetensors", torch.from_numpy(x), ids)
    write_chunk(tmp_path / "4" / "chunk-0.safetensors", torch.from_numpy(x.reshape(3, 2, 5, 4)), ids.reshape(3, 2, 5))
    for axes in "34":
        imported(tmp_path / axes, tmp_path / f"store{axes}")
    assert files_of(tmp_path / "store3") == files_of(tmp_path / "store4")


def test_a_text_that_is_masked_whole_is_a_document_without_rows(tmp_path: Path) -> None:
    ids = token_ids(5, 6)
    ids[[0, 2, 4], 1:] = PAD
    write_chunk(tmp_path / "chunk-0.safetensors", torch.from_numpy(normal(5, 6, 4)), ids)
    store = imported(tmp_path, tmp_path / "store")
    assert set(all_of(store, "document")) == {1, 3}
    assert [document["id"] for document in store.documents] == ["0", "1", "2", "3"]


# Arrow


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_texts_of_saelens_come_back_in_the_order_of_the_data_set(tmp_path: Path, dtype: str) -> None:
    x, ids = normal(25, 4, 3), token_ids(25, 4)
    order = np.random.default_rng(1).permutation(25)
    cached = cached_by_saelens(x.astype(dtype), ids, dtype).select(order)
    source = save_to_disk(cached, tmp_path / "cache", shards=3)
    (source / "cache-0123456789abcdef.arrow").write_bytes((source / "data-00000-of-00003.arrow").read_bytes())
    store = imported(source, tmp_path / "store", bos_id=BOS)
    np.testing.assert_array_equal(all_rows(store), x[order].reshape(-1, 3))
    assert all_of(store, "token_id") == ids[order].ravel().tolist()
    assert all_of(store, "document") == np.repeat(np.arange(25), 4).tolist()
    assert all_of(store, "position") == list(range(4)) * 25
    assert all_of(store, "special") == (ids[order].ravel() == BOS).tolist()
    assert store.manifest["facts"]["key"] == COLUMN


def test_a_bos_is_not_guessed(tmp_path: Path) -> None:
    source = save_to_disk(cached_by_saelens(normal(4, 6, 3), token_ids(4, 6)), tmp_path / "cache", shards=1)
    assert not any(all_of(imported(source, tmp_path / "store"), "special"))


def test_one_file_of_a_cache_without_tokens(tmp_path: Path) -> None:
    x = normal(8, 6, 4)
    source = save_to_disk(cached_by_saelens(x, None), tmp_path / "cache", shards=2)
    store = imported(source / "data-00001-of-00002.arrow", tmp_path / "store")
    np.testing.assert_array_equal(all_rows(store), x[4:].reshape(-1, 4))
    assert set(all_of(store, "token_id")) == {-1}


def test_texts_of_an_arrow_file_may_differ_in_length(tmp_path: Path) -> None:
    lengths = [3, 0, 4, 1]
    x = np.split(normal(8, 3), np.cumsum(lengths)[:-1])
    ids = np.split(np.arange(8), np.cumsum(lengths)[:-1])
    write_arrow(tmp_path / "x.arrow", {"h": lists(x, MATRIX), "token_ids": lists(ids, INTEGERS)})
    store = imported(tmp_path, tmp_path / "store")
    np.testing.assert_array_equal(all_rows(store), normal(8, 3))
    assert all_of(store, "document") == [0] * 3 + [2] * 4 + [3]
    assert all_of(store, "position") == [*range(3), *range(4), 0]
    assert all_of(store, "token_id") == list(range(8))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_arrow(tmp_path / "x.arrow", {"h": lists([normal(2, 3)], MATRIX)})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r'x\.arrow needs pyarrow to be read; run pip install "saejax\[pandas\]"'):
        imported(tmp_path, tmp_path / "store")


# What is known of the model and the rows


def test_stores_of_one_name_are_of_one_model(tmp_path: Path) -> None:
    source = save_npy(tmp_path / "x", [normal(20, 3)])
    one = imported(source, tmp_path / "one")
    same = imported(source, tmp_path / "same", hook="mlp_out.0")
    other = imported(source, tmp_path / "other", model="another")
    fingerprint = one.manifest["facts"]["model_fingerprint"]
    same.require(model_fingerprint=fingerprint)
    with pytest.raises(InputError, match="is of model"):
        other.require(model_fingerprint=fingerprint)


def test_rows_are_the_same_where_tokens_are_or_where_that_is_said(tmp_path: Path) -> None:
    first, second = (save_npy(tmp_path / name, {name: normal(20, 3, seed=len(name))}) for name in ("a", "bb"))
    with pytest.raises(InputError, match="or import both under one --text"):
        aligned(imported(first, tmp_path / "a0"), imported(second, tmp_path / "b0"))
    aligned(imported(first, tmp_path / "a1", text="pile"), imported(second, tmp_path / "b1", text="pile"))
    ids = token_ids(4, 6)
    caches = [
        save_to_disk(cached_by_saelens(normal(4, 6, width), tokens), tmp_path / f"cache{number}", shards=shards)
        for number, (width, tokens, shards) in enumerate([(3, ids, 1), (5, ids, 2), (3, ids[::-1].copy(), 1)])
    ]
    stores = [imported(cache, tmp_path / f"{cache.name}_store") for cache in caches]
    aligned(stores[0], stores[1])
    with pytest.raises(InputError, match="are of different tokens"):
        aligned(stores[0], stores[2])


def test_an_imported_matrix_goes_through_every_verb_that_reads_a_store(tmp_path: Path) -> None:
    model = make_model(tmp_path / "weights", 0)
    source = save_npy(tmp_path / "x", [normal(300, 8)]) / "0000.npy"
    store, sae = (str(tmp_path / name) for name in ("store", "sae"))
    cli.main(["import", "--source", str(source), "--hook", HOOK, "--model-folder", str(model), "--out", store])
    cli.main([
        "train", "--store", store, "--hook", HOOK, "--d-sae", "16", "--k", "2", "--steps", "4", "--batch", "64",
        "--warmup-steps", "1", "--decay-steps", "1", "--out", sae,
    ])  # fmt: skip
    cli.main(["encode", "--store", store, "--sae", sae, "--out", str(tmp_path / "features")])
    cli.main(["stats", "--store", store, "--out", str(tmp_path / "stats")])
    loaded, facts = load(model), artifacts.read_finished(sae, "sae")["facts"]
    assert (facts["model"], facts["model_fingerprint"]) == (loaded.name, loaded.fingerprint)
    assert (facts["hook"], facts["d_model"], facts["runtime"]) == (HOOK, 8, "imported")
    assert artifacts.read_finished(tmp_path / "features", "features")["facts"]["rows"] == 300
    assert artifacts.read_json(tmp_path / "stats" / "statistics.json")[HOOK]["rows"] == 300


# Interruption


class Killed(Exception):
    """Stands for the end of the process."""


def count_reads(config: ImportConfig) -> int:
    """Import, and return how many blocks of activations were read."""
    calls = []

    def counted(block: files.Block) -> np.ndarray:
        calls.append(1)
        return original(block)

    original = run._float32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_float32", counted)
        import_activations(config)
    return len(calls)


@pytest.mark.parametrize("killed_at", ["read 1", "read 4", "read 12", "note 3", "finish 1"])
@pytest.mark.parametrize("ending", ["npy", "safetensors", "arrow"])
def test_a_killed_import_goes_on_and_ends_the_same(tmp_path: Path, ending: str, killed_at: str) -> None:
    source = tmp_path / "source"
    if ending == "npy":
        save_npy(source, [normal(70, 3), normal(50, 3)])
    elif ending == "safetensors":
        for number in range(3):
            chunk = torch.from_numpy(normal(16, 5, 3, seed=number))
            write_chunk(source / f"chunk-{number}.safetensors", chunk, token_ids(16, 5, number))
    else:
        save_to_disk(cached_by_saelens(normal(24, 5, 3), token_ids(24, 5)), source, shards=2)
    undisturbed = count_reads(config_of(source, tmp_path / "whole"))
    config = config_of(source, tmp_path / "store")
    where, call = killed_at.split()
    of, name = {"read": (run, "_float32"), "note": (artifacts.Run, "note"), "finish": (StoreWriter, "finish")}[where]
    original, calls = getattr(of, name), []

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == int(call):
            raise Killed
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, name, killed)
        with pytest.raises(Killed):
            import_activations(config)
    stands = len(committed_shards(Folder(config.out)))
    left = count_reads(config)
    assert left < undisturbed if stands else left == undisturbed
    assert files_of(config.out) == files_of(tmp_path / "whole")
    assert manifest_without_times(config.out) == manifest_without_times(tmp_path / "whole")


def test_both_sizes_are_settings(tmp_path: Path) -> None:
    source = save_npy(tmp_path / "x", [normal(40, 3)])
    assert imported(source, tmp_path / "a").chunk_rows == 16
    store = imported(source, tmp_path / "b", shard_tokens=8, chunk_tokens=4)
    assert (store.manifest["facts"]["shard_rows"], store.chunk_rows) == (8, 4)
    np.testing.assert_array_equal(store.read(HOOK, 0, 40), normal(40, 3))


def test_a_complete_import_is_left_alone(tmp_path: Path) -> None:
    source = save_npy(tmp_path / "x", [normal(40, 3)])
    config = config_of(source, tmp_path / "store")
    assert count_reads(config) == 4
    before = files_of(tmp_path / "store")
    assert count_reads(config) == 0
    (tmp_path / "store" / "shards" / "00000001.json").unlink()
    assert count_reads(config) == 3  # the blocks that rows 16 to 32 touch
    assert files_of(tmp_path / "store") == before
    with pytest.raises(InputError, match="holds another run"):
        import_activations(dataclasses.replace(config, dtype="bfloat16"))
    save_npy(source, [normal(40, 3, seed=1)])
    with pytest.raises(InputError, match="files_sha256"):
        import_activations(config)


def test_a_store_in_a_bucket_is_that_on_a_disk(tmp_path: Path) -> None:
    source = save_npy(tmp_path / "x", [normal(40, 3)])
    imported(source, tmp_path / "store")
    imported(source, "memory://imported/store")
    assert files_of("memory://imported/store") == files_of(tmp_path / "store")
