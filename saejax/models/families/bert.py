"""BERT and its kin (MiniLM), and DistilBERT: encoders, in which every token sees all others of its text.

Norms stand behind attention and MLP, and behind the embedding. A checkpoint with the head of a masked language model
gives logits; the pooler and the heads of other tasks are left out.
"""

from collections.abc import Mapping
from typing import Any

from saejax.models.config import TransformerConfig
from saejax.models.families.family import Family, Site, Weight, dense, into, norm, out_of
from saejax.models.families.reading import NAMES, Faults

BERT_LAYER, DISTIL_LAYER = "bert.encoder.layer.{}", "distilbert.transformer.layer.{}"
BERT_HEAD = "cls.predictions"
DISTIL_EPS = 1e-12

BERT_WEIGHTS = (
    Weight("embed", "bert.embeddings.word_embeddings.weight"),
    Weight("positions", "bert.embeddings.position_embeddings.weight"),
    Weight("token_types", "bert.embeddings.token_type_embeddings.weight"),
    *norm("embed_norm", "bert.embeddings.LayerNorm"),
    *dense("blocks.w_q", f"{BERT_LAYER}.attention.self.query"),
    *dense("blocks.w_k", f"{BERT_LAYER}.attention.self.key"),
    *dense("blocks.w_v", f"{BERT_LAYER}.attention.self.value"),
    *dense("blocks.w_o", f"{BERT_LAYER}.attention.output.dense"),
    *norm("blocks.attn_norm", f"{BERT_LAYER}.attention.output.LayerNorm"),
    *dense("blocks.w_up", f"{BERT_LAYER}.intermediate.dense"),
    *dense("blocks.w_down", f"{BERT_LAYER}.output.dense"),
    *norm("blocks.mlp_norm", f"{BERT_LAYER}.output.LayerNorm"),
    *dense("masked_head.dense", f"{BERT_HEAD}.transform.dense"),
    *norm("masked_head.norm", f"{BERT_HEAD}.transform.LayerNorm"),
    Weight("masked_head.bias", f"{BERT_HEAD}.bias"),
    Weight("unembed", f"{BERT_HEAD}.decoder.weight", transposed=True),
)
BERT_SITES: Mapping[str, Site] = {
    "embed": out_of("bert.embeddings"),
    "resid_pre": into(BERT_LAYER),
    "attn_in": into(f"{BERT_LAYER}.attention.self.query"),
    "attn_z": into(f"{BERT_LAYER}.attention.output.dense"),
    "attn_out": out_of(f"{BERT_LAYER}.attention.output.dense"),
    "resid_mid": out_of(f"{BERT_LAYER}.attention.output.LayerNorm"),
    "mlp_in": into(f"{BERT_LAYER}.intermediate.dense"),
    "mlp_hidden": into(f"{BERT_LAYER}.output.dense"),
    "mlp_out": out_of(f"{BERT_LAYER}.output.dense"),
    "resid_post": out_of(BERT_LAYER),
}
DISTIL_WEIGHTS = (
    Weight("embed", "distilbert.embeddings.word_embeddings.weight"),
    Weight("positions", "distilbert.embeddings.position_embeddings.weight"),
    *norm("embed_norm", "distilbert.embeddings.LayerNorm"),
    *dense("blocks.w_q", f"{DISTIL_LAYER}.attention.q_lin"),
    *dense("blocks.w_k", f"{DISTIL_LAYER}.attention.k_lin"),
    *dense("blocks.w_v", f"{DISTIL_LAYER}.attention.v_lin"),
    *dense("blocks.w_o", f"{DISTIL_LAYER}.attention.out_lin"),
    *norm("blocks.attn_norm", f"{DISTIL_LAYER}.sa_layer_norm"),
    *dense("blocks.w_up", f"{DISTIL_LAYER}.ffn.lin1"),
    *dense("blocks.w_down", f"{DISTIL_LAYER}.ffn.lin2"),
    *norm("blocks.mlp_norm", f"{DISTIL_LAYER}.output_layer_norm"),
    *dense("masked_head.dense", "vocab_transform"),
    *norm("masked_head.norm", "vocab_layer_norm"),
    Weight("masked_head.bias", "vocab_projector.bias"),
    Weight("unembed", "vocab_projector.weight", transposed=True),
)
DISTIL_SITES: Mapping[str, Site] = {
    "embed": out_of("distilbert.embeddings"),
    "resid_pre": into(DISTIL_LAYER),
    "attn_in": into(f"{DISTIL_LAYER}.attention.q_lin"),
    "attn_z": into(f"{DISTIL_LAYER}.attention.out_lin"),
    "attn_out": out_of(f"{DISTIL_LAYER}.attention.out_lin"),
    "resid_mid": out_of(f"{DISTIL_LAYER}.sa_layer_norm"),
    "mlp_in": into(f"{DISTIL_LAYER}.ffn.lin1"),
    "mlp_hidden": into(f"{DISTIL_LAYER}.ffn.lin2"),
    "mlp_out": out_of(f"{DISTIL_LAYER}.ffn.lin2"),
    "resid_post": out_of(DISTIL_LAYER),
}


def _encoder(config: Any, faults: Faults, **own: Any) -> TransformerConfig:
    faults.check()
    heads, width = config.num_attention_heads, config.hidden_size
    return TransformerConfig(
        vocab_size=config.vocab_size, d_model=width, n_layers=config.num_hidden_layers, n_heads=heads,
        n_kv_heads=heads, d_head=width // heads, max_positions=config.max_position_embeddings, embed_norm=True,
        positions="learned", causal=False, attn_bias=True, attn_out_bias=True, gated=False, mlp_bias=True,
        norm="layer", residual="post_norm", final_norm=False, head="masked",
        tie_embeddings=config.tie_word_embeddings, **own,
    )  # fmt: skip


def _bert_config(config: Any) -> TransformerConfig:
    faults = Faults(config)
    faults.refuse(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    return _encoder(
        config, faults, d_mlp=config.intermediate_size, token_types=config.type_vocab_size,
        activation=faults.activation(config.hidden_act), norm_eps=config.layer_norm_eps,
    )  # fmt: skip


def _distil_config(config: Any) -> TransformerConfig:
    faults = Faults(config)
    activation = faults.activation(config.activation)
    return _encoder(config, faults, d_mlp=config.hidden_dim, activation=activation, norm_eps=DISTIL_EPS)


def _bert_fields(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_mlp,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.token_types,
        "hidden_act": NAMES[config.activation],
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _distil_fields(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "dim": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "hidden_dim": config.d_mlp,
        "max_position_embeddings": config.max_positions,
        "activation": NAMES[config.activation],
        "tie_word_embeddings": config.tie_embeddings,
    }


BERT = Family(
    model_type="bert",
    architecture="BertForMaskedLM",
    weights=BERT_WEIGHTS,
    base="bert.",
    required=("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    sizes={
        "vocab_size": "vocab_size", "d_model": "hidden_size", "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads", "d_mlp": "intermediate_size", "max_positions": "max_position_embeddings",
    },
    sites=lambda config: BERT_SITES,
    config_from=_bert_config,
    config_to=_bert_fields,
    ignored=("*.position_ids", "*pooler.*", "cls.seq_relationship.*", "cls.predictions.decoder.bias"),
    renamed={".gamma": ".weight", ".beta": ".bias"},
)  # fmt: skip
DISTILBERT = Family(
    model_type="distilbert",
    architecture="DistilBertForMaskedLM",
    weights=DISTIL_WEIGHTS,
    base="distilbert.",
    required=("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim"),
    sizes={
        "vocab_size": "vocab_size", "d_model": "dim", "n_layers": "n_layers", "n_heads": "n_heads",
        "d_mlp": "hidden_dim", "max_positions": "max_position_embeddings",
    },
    sites=lambda config: DISTIL_SITES,
    config_from=_distil_config,
    config_to=_distil_fields,
    ignored=("*.position_ids", "pre_classifier.*", "classifier.*"),
)  # fmt: skip
