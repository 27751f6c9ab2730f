"""`saejax eval` on a shipped model: what is evaluated, what is kept, and what is refused before any of it is run."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_models import saved_model
from made_texts import random_sae

import saejax.models
from saejax import artifacts, cli
from saejax.demo import shipped
from saejax.errors import InputError
from saejax.interventions import evaluation
from saejax.interventions.evaluation import EvalConfig, Evaluation, evaluate, plan, table
from saejax.interventions.splicing import splice, table_rows
from saejax.sae import params
from saejax.sae.health import health_table
from saejax.text.corpus import CorpusConfig, read_documents
from saejax.text.packing import Packing, pack
from saejax.text.tokens import Tokenizer

MODEL = shipped("seed0")
HOOK = "resid_post.0"
SAE = random_sae(256)
TOKENS = 300


@dataclasses.dataclass(frozen=True)
class MadeConfig:
    """Identity of a made SAE run."""

    hook: str


def sae_run(out: Path, hook: str, model: Path = MODEL) -> Path:
    run = artifacts.begin(out, "sae", MadeConfig(hook))
    made = saejax.models.load(model)
    run.finish(hook=hook, model=made.name, model_fingerprint=made.fingerprint, **params.save(SAE, out))
    return out


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EvalConfig:
    """Nine documents, and fewer tokens than they have: the last row is cut short, and batches hold two."""
    root = tmp_path_factory.mktemp("eval")
    lines = [{"id": f"d{i}", "text": f"The {i}th document speaks of rivers, kings and tables. " * 4} for i in range(9)]
    (root / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = CorpusConfig(str(root / "text.jsonl"))
    run = sae_run(root / "sae", HOOK)
    return EvalConfig(run, MODEL, root / "out", corpus, tokens=TOKENS, context=64, batch=2)


@pytest.fixture(scope="module")
def lines(config: EvalConfig) -> list[str]:
    return evaluate(config)


def test_the_result_is_that_of_the_first_tokens_of_the_text(config: EvalConfig, lines: list[str]) -> None:
    tokenizer, assembled = Tokenizer.load(MODEL), []
    for batch in pack(read_documents(config.corpus), tokenizer, Packing(64, 2, tokenizer.before)):
        number = 128 * len(assembled) + np.arange(128).reshape(2, 64)
        assembled.append(dataclasses.replace(batch, segment=np.where(number < TOKENS, batch.segment, 0)))
    found = splice(saejax.models.load(MODEL), HOOK, SAE, assembled[:3])
    assert len(assembled) > 3
    plain = [(batch.segment > 0) & (batch.input_ids != tokenizer.bos_id) for batch in assembled]
    assert found.measured.rows == np.sum(plain)
    assert config.out is not None
    kept = artifacts.read_json(config.out / "evaluation.json")
    assert kept == {"splicing": table_rows(found), "health": health_table(SAE, found.measured)}
    facts = artifacts.read_finished(config.out, "evaluation")
    assert facts["inputs"]["sae"] == artifacts.run_fingerprint(config.sae)
    assert facts["facts"]["hook"] == HOOK
    assert lines == [*table(kept), str(config.out)]


def test_texts_keep_the_special_tokens_that_the_tokenizer_puts_around_them(config: EvalConfig) -> None:
    """As extraction keeps them: what an SAE was trained on is what it is judged on."""
    opened = Evaluation.open(config)
    assert opened.tokenizer.eos_id is not None
    opened.tokenizer.after = (opened.tokenizer.eos_id,)
    batches = opened.batches()
    assert len(batches) > 2
    for batch in batches[:-1]:
        for ids, segment in zip(batch.input_ids, batch.segment, strict=True):
            for number in range(1, segment.max() + 1):
                text = ids[segment == number]
                assert (text[0], text[-1]) == (opened.tokenizer.bos_id, opened.tokenizer.eos_id)


def test_the_same_command_finds_its_result(
    config: EvalConfig, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "splice", None)
    assert evaluate(config) == lines
    with pytest.raises(InputError, match="holds another run .tokens 300 there, 299 now."):
        evaluate(dataclasses.replace(config, tokens=299))


def test_without_out_the_numbers_are_printed_and_nothing_is_written(
    config: EvalConfig, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(config.sae.parent.rglob("*"))
    cli.main(["eval", "--sae", str(config.sae), "--model", str(MODEL), "--corpus.source", config.corpus.source,
              "--corpus.split", "all", "--tokens", "300", "--context", "64", "--batch", "2"])  # fmt: skip
    assert capsys.readouterr().out.splitlines() == lines[:-1]
    assert plan(dataclasses.replace(config, out=config.sae.parent / "planned"))["rows"] == "300"
    assert sorted(config.sae.parent.rglob("*")) == before


def test_text_is_held_out_unless_asked_otherwise(tmp_path: Path) -> None:
    assert EvalConfig(tmp_path, MODEL).corpus.split == "heldout"


def test_a_table_shows_ranges_advice_and_what_has_no_value() -> None:
    bare = dict.fromkeys(("value", "low", "high", "verdict", "advice"))
    rows = [
        {**bare, "metric": "loss_recovered_zero", "unit": "share"},
        {**bare, "metric": "l0", "value": 128.0, "unit": "latents", "low": 1.0, "high": 2.0},
        {"metric": "density", "value": 0.01, "unit": "L0 / d_sae", "low": 0.02, "high": 0.1, "verdict": "low",
         "advice": "raise k"},
        {**bare, "metric": "cosine", "value": 0.123456, "unit": "mean", "high": 0.3, "verdict": "healthy"},
    ]  # fmt: skip
    assert table({"splicing": rows[:1], "health": rows[1:]}) == [
        "metric                value  healthy",
        "loss_recovered_zero    none               share",
        "l0                      128               latents",
        "density                0.01  0.02 to 0.1  L0 / d_sae (low: raise k)",
        "cosine               0.1235  at most 0.3  mean",
    ]


def test_all_that_does_not_fit_is_said_at_once(config: EvalConfig, tmp_path: Path) -> None:
    """Another model, narrower, of fewer tokens than its tokenizer, and too short for the rows."""
    other = tmp_path / "other"
    saved_model("llama-grouped-tied", other, max_position_embeddings=63)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, other)
    with pytest.raises(InputError) as refusal:
        evaluate(dataclasses.replace(config, model=other, out=tmp_path / "out"))
    line = str(refusal.value)
    for part in ("the SAE reads 256 entries, and resid_post.0 of model other has 48", "reads model seed0 (",
                 "holds other (", "context 64 is above the model's 63 positions",
                 "a tokenizer of 4096 tokens and a model of 97"):  # fmt: skip
        assert part in line
    assert "\n" not in line
    assert not (tmp_path / "out").exists()


def test_sizes_that_leave_nothing_to_predict_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        EvalConfig(tmp_path, MODEL, tokens=1, context=0, batch=0)
    assert str(refusal.value) == "tokens 1; give at least 2; context 0; give at least 2; batch 0; give at least 1"
