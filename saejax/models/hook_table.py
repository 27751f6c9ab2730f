"""Where hook points lie in the words of others: Hugging Face's hidden states and modules, and TransformerLens.

The tables of `hook_points.md` are made here, from what the families say themselves.
"""

from collections.abc import Mapping
from typing import NamedTuple

from saejax.models.config import TransformerConfig
from saejax.models.families import FAMILIES, Family, read_config, size_fields

LENS: Mapping[str, str] = {
    "resid_pre": "blocks.L.hook_resid_pre",
    "attn_in": "blocks.L.ln1.hook_normalized",
    "attn_z": "blocks.L.attn.hook_z",
    "attn_out": "blocks.L.hook_attn_out",
    "resid_mid": "blocks.L.hook_resid_mid",
    "mlp_in": "blocks.L.ln2.hook_normalized",
    "mlp_hidden": "blocks.L.mlp.hook_post",
    "mlp_out": "blocks.L.hook_mlp_out",
    "resid_post": "blocks.L.hook_resid_post",
    "final_norm": "ln_final.hook_normalized",
}
LENS_OF_ENCODERS: Mapping[str, str] = {
    "embed": "hook_full_embed",
    "resid_pre": "blocks.L.hook_resid_pre",
    "attn_z": "blocks.L.attn.hook_z",
    "attn_out": "blocks.L.hook_attn_out",
    "resid_mid": "blocks.L.ln1.hook_normalized",
    "mlp_hidden": "blocks.L.mlp.hook_post",
    "mlp_out": "blocks.L.hook_mlp_out",
    "resid_post": "blocks.L.hook_normalized_resid_post",
}
WITHOUT_LENS = ("distilbert",)  # families that TransformerLens does not load
NONE = "-"


class Row(NamedTuple):
    """A hook point in all words.

    Attributes:
        hook: bare name here; `.L` is behind it in a block.
        hidden_state: the entry of `hidden_states` that it is.
        module: path of the Hugging Face module, and its side.
        lens: name in TransformerLens.
    """

    hook: str
    hidden_state: str
    module: str
    lens: str


def rows(family: Family, config: TransformerConfig) -> list[Row]:
    """Return the hook points of a family's model, in the order in which a forward pass meets them."""
    inside = [f"{name}.L" for name in config.block_hooks]
    names = ["embed", *inside, *(["final_norm"] if config.final_norm else [])]
    return [
        Row(name, _hidden_state(name, config), family.module_path(name, config), _lens(name, family, config))
        for name in names
    ]


def _hidden_state(name: str, config: TransformerConfig) -> str:
    if name == "resid_post.L":
        last_is_other = config.final_norm or config.embed_width != config.d_model
        return "hidden_states[L + 1]" + (", L < n - 1" if last_is_other else "")
    known = {"embed": "hidden_states[0]", "resid_pre.L": "hidden_states[L]", "final_norm": "hidden_states[-1]"}
    return known.get(name, NONE)


def _lens(name: str, family: Family, config: TransformerConfig) -> str:
    bare = name.partition(".")[0]
    if family.model_type in WITHOUT_LENS or (config.residual == "post_norm" and config.causal):
        return NONE
    if not config.causal:
        return LENS_OF_ENCODERS.get(bare, NONE)
    if bare == "embed":
        return "hook_embed + hook_pos_embed" if config.positions == "learned" else "hook_embed"
    return LENS.get(bare, NONE)


SMALL = {"vocab_size": 8, "d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "d_head": 8, "d_mlp": 8}
# By the title of a table, whose hook points it is of.
EXAMPLES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "GPT-2": ("gpt2", {}),
    "OPT": ("opt", {}),
    "OPT-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 8}),
    "GPT-NeoX (Pythia)": ("gpt_neox", {}),
    "GPT-NeoX, not in parallel": ("gpt_neox", {"use_parallel_residual": False}),
    "Llama, SmolLM2, Mistral, Qwen 2, Qwen 3, Gemma": ("llama", {}),
    "Gemma 2, Gemma 3": ("gemma2", {}),
    "BERT, MiniLM": ("bert", {}),
    "DistilBERT": ("distilbert", {}),
}
OTHERS = """\
## All other architectures

Extraction runs them through transformers in torch (`pip install "saejax[torch]"`), and any family above by
`--runtime torch`. The model's one list of blocks gives `embed`, `resid_pre.L` and `resid_post.L`. Every module that a
pass runs once gives two hook points more, `module.path:input` and `module.path:output`, as in the third column above.\
"""


def tables() -> str:
    """Return all tables, in Markdown."""
    found = []
    for title, (model_type, fields) in EXAMPLES.items():
        family = FAMILIES[model_type]
        sizes = {name: size for name, size in SMALL.items() if name in family.sizes}
        config = read_config(family, {**size_fields(family, sizes), **fields})
        lines = [f"| `{row.hook}` | {_quoted(row.hidden_state)} | `{row.module}` | {_quoted(row.lens)} |"
                 for row in rows(family, config)]  # fmt: skip
        head = ["| here | `hidden_states` | module in transformers | TransformerLens |", "|---|---|---|---|"]
        found.append("\n".join([f"## {title}", "", *head, *lines]))
    return "\n\n".join([*found, OTHERS])


def _quoted(words: str) -> str:
    return words if words == NONE else f"`{words}`"
