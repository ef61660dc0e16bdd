"""How much memory a training step takes: arithmetic from a model's config.json, without torch.

tests/training/test_memory.py compares it with what torch keeps for the backward pass on a CPU.

Notation, in code and comments, for one layer:
  hidden        numbers of a token between layers
  query         numbers of a token's queries: heads x head_dim
  key           numbers of its keys, and of its values: kv_heads x head_dim
  intermediate  numbers of a token within the feed-forward part
"""

import re
from dataclasses import dataclass, fields

from cai.config.types import Arguments
from cai.digest import JsonObject

GIB = 2**30

# Models whose layers have four norms, not two, and those that normalise queries and keys.
FOUR_NORMS = ("gemma2", "gemma3", "gemma3_text")
QUERY_NORMS = ("qwen3", "gemma3", "gemma3_text", "olmo2")

# Scores of the output layer that exist at once: trl's tile is 4,096 tokens by 32,768 words, and
# training/cpu_head.py holds half as many. Each is there as a score, a float32, and a gradient.
MAX_SCORES = 2**27
SCORE_BYTES = 12

# the share of the memory that fragments and the libraries' own buffers leave
USABLE = 0.92


@dataclass(frozen=True)
class Shape:
    """A decoder with gated feed-forward layers, as Llama, Mistral, Qwen and Gemma are."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # input and output embeddings are the same weights
    norms: int
    query_norm: bool

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear parts of a layer by transformers' names, each with its inputs and outputs."""
        return {
            "self_attn.q_proj": (self.hidden, self.query),
            "self_attn.k_proj": (self.hidden, self.key),
            "self_attn.v_proj": (self.hidden, self.key),
            "self_attn.o_proj": (self.query, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate),
            "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_weights(self) -> int:
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def embedding_weights(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        """All weights but those of norms and biases, which are few."""
        return self.layers * self.layer_weights + self.embedding_weights


def read_shape(config: JsonObject) -> Shape | None:
    """The shape that a config.json describes; None where the model is of another kind.

    Mixtures of experts, and models that name their sizes otherwise, are of another kind.
    """
    values = {**config, **(config.get("text_config") or {})}
    if values.get("num_experts") or values.get("num_local_experts"):
        return None
    kind = values.get("model_type", "")
    try:
        heads = values["num_attention_heads"]
        return Shape(
            hidden=values["hidden_size"],
            intermediate=values["intermediate_size"],
            layers=values["num_hidden_layers"],
            heads=heads,
            kv_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            vocabulary=values["vocab_size"],
            # transformers leaves what is its default out of the file
            tied=values.get("tie_word_embeddings", kind.startswith("gemma")),
            norms=4 if kind in FOUR_NORMS else 2,
            query_norm=kind in QUERY_NORMS,
        )
    except KeyError:
        return None


@dataclass(frozen=True)
class Tuning:
    """How a model is trained, as far as memory depends on it."""

    rows: int = 1  # at once on a device; of DPO two a pair
    tokens: int = 1  # of the longest row
    lora: Arguments | None = None  # arguments of peft.LoraConfig; None tunes every weight
    weight_bytes: float = 4  # of a loaded weight; of layers in four bits about 0.55
    embedding_bytes: float | None = None  # of the embeddings, where these are not quantised
    compute_bytes: int = 2  # of a number within the layers: 2 under autocast, 4 without
    moment_bytes: int = 8  # of the optimizer, for each trained weight
    reference_bytes: float = 0  # a weight, of DPO's second model
    attention: str | None = None  # transformers' attn_implementation
    processes: int = 1
    sharded: bool = False  # FSDP or ZeRO-3 divide weights, gradients and moments
    checkpointing: bool = False


@dataclass(frozen=True)
class Forecast:
    """Bytes on each device."""

    weights: float
    reference: float
    gradients: float
    moments: float
    copies: float  # of weights: in bfloat16 for autocast, gathered by FSDP, or in DDP's buckets
    activations: float
    scores: float

    @property
    def total(self) -> float:
        return sum(getattr(self, part.name) for part in fields(self))

    def parts(self) -> str:
        """The parts that count, largest first."""
        sizes = {part.name: getattr(self, part.name) / GIB for part in fields(self)}
        largest_first = sorted(sizes.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {size:.1f}" for name, size in largest_first if size >= 0.05)


def forecast(shape: Shape, tuning: Tuning) -> Forecast:
    """The memory of a step at its largest: every row is as long as it may be."""
    trained = trained_weights(shape, tuning)
    shares = tuning.processes if tuning.sharded else 1
    tokens = tuning.rows * tuning.tokens
    layer_bytes = tokens * _bytes_of_layer(shape, tuning)
    boundary_bytes = tokens * shape.hidden * _residual_bytes(tuning)
    activations = shape.layers * layer_bytes
    if tuning.checkpointing:  # each layer's input, and one layer that is computed again
        activations = shape.layers * boundary_bytes + layer_bytes
    adapter = 0 if tuning.lora is None else 4 * trained
    return Forecast(
        weights=(loaded_bytes(shape, tuning) + adapter) / shares,
        reference=shape.weights * tuning.reference_bytes / shares,
        gradients=4 * trained / shares,
        moments=tuning.moment_bytes * trained / shares,
        copies=_copied_bytes(shape, tuning, trained),
        activations=activations + tokens * _norm_bytes(tuning) * shape.hidden,  # the last norm's
        scores=SCORE_BYTES * min(tokens * shape.vocabulary, MAX_SCORES),
    )


def loaded_bytes(shape: Shape, tuning: Tuning) -> float:
    """The model's weights, whole and without an adapter."""
    of_embeddings = tuning.embedding_bytes or tuning.weight_bytes
    layer_weights = shape.layers * shape.layer_weights
    return layer_weights * tuning.weight_bytes + shape.embedding_weights * of_embeddings


def trained_weights(shape: Shape, tuning: Tuning) -> int:
    """All, or those of the adapter."""
    if tuning.lora is None:
        return shape.weights
    rank = tuning.lora.get("r", 8)
    adapted = _adapted_linears(shape, tuning.lora)
    adapter = shape.layers * sum(rank * (inputs + outputs) for inputs, outputs in adapted.values())
    whole = {"embed_tokens", "lm_head"} & {*(tuning.lora.get("modules_to_save") or ())}
    return adapter + len(whole) * shape.vocabulary * shape.hidden


def _adapted_linears(shape: Shape, lora: Arguments) -> dict[str, tuple[int, int]]:
    targets = lora.get("target_modules") or ["q_proj", "v_proj"]  # peft's default for these models
    if targets == "all-linear":
        return shape.linears
    if isinstance(targets, str):  # peft takes it for a regular expression of the whole name
        return {
            name: sizes
            for name, sizes in shape.linears.items()
            if re.fullmatch(targets, f"model.layers.0.{name}")
        }
    return {
        name: sizes for name, sizes in shape.linears.items() if name.rpartition(".")[2] in targets
    }


def _residual_bytes(tuning: Tuning) -> int:
    """Of a number between layers: it has the loaded weights' format, also under autocast."""
    return 4 if tuning.weight_bytes == 4 else 2


def _norm_bytes(tuning: Tuning) -> int:
    """Of a number in a norm: it keeps its input in float32, a trained one its result too."""
    return 8 if tuning.lora is None else 4


def _bytes_of_layer(shape: Shape, tuning: Tuning) -> float:
    """What a layer keeps for the backward pass, for each token."""
    autocast = tuning.compute_bytes < 4
    numbers = _attention_numbers(shape, tuning) + 3 * shape.intermediate
    scores_bytes = 4 * shape.heads  # of each query, the logarithm of a sum
    if tuning.attention == "eager":
        scores_bytes = (6 if autocast else 4) * shape.heads * tuning.tokens
    normalised = shape.norms * shape.hidden + shape.query_norm * (shape.query + shape.key)
    if not autocast:
        numbers += 2 * shape.hidden + shape.intermediate
    elif tuning.lora is None:
        # autocast copies the input for each of q, k, v, gate and up; o's is the attention's output
        numbers += 5 * shape.hidden + shape.intermediate
    dropout_bytes = 0
    if tuning.lora is not None:
        adapted = _adapted_linears(shape, tuning.lora)
        inputs = sum(inputs for inputs, _ in adapted.values())
        # autocast copies the input of each adapter
        numbers += autocast * inputs + tuning.lora.get("r", 8) * len(adapted)
        dropout_bytes = 4 * inputs if tuning.lora.get("lora_dropout") else 0
    layer_bytes = tuning.compute_bytes * numbers
    return layer_bytes + _norm_bytes(tuning) * normalised + scores_bytes + dropout_bytes


def _attention_numbers(shape: Shape, tuning: Tuning) -> int:
    """Queries, keys, values and their mean; beside a mask keys and values are there for each head.

    sdpa makes a mask for each layer, of a number for each pair of tokens. FlashAttention has none.
    """
    if "flash" in (tuning.attention or ""):
        return 2 * shape.query + 2 * shape.key
    mask = 0 if tuning.attention == "eager" else tuning.tokens
    return 4 * shape.query + mask


def _copied_bytes(shape: Shape, tuning: Tuning, trained: int) -> float:
    layer_weights = shape.layers * shape.layer_weights
    if tuning.sharded:  # one layer is computed while the next arrives, and the output layer
        parts = 2 * shape.layer_weights + shape.vocabulary * shape.hidden
        return tuning.compute_bytes * parts + 4 * min(trained, shape.layer_weights)
    copied: float = 0
    if tuning.compute_bytes < 4:
        copied = (
            2 * trained
        )  # autocast keeps its copies of trained weights through the forward pass
        if tuning.lora is not None and tuning.weight_bytes == 4 and not tuning.checkpointing:
            copied += 2 * layer_weights
    buckets = 4 * trained if tuning.processes > 1 else 0
    return copied + buckets
