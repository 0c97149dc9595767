"""The words of a recipe that are one of a few."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """What a step of a compression changes."""

    DATA = "data"
    REDUCE = "reduce"
    FACTORIZE = "factorize"
    TRAIN = "train"
    AWARE = "aware"
    QUANTIZE = "quantize"


class Head(StrEnum):
    """Whether a quantization takes in the output layer and the embedding that is tied to it."""

    SAME = "same"
    KEEP = "keep"


class Rounding(StrEnum):
    """How weights become integers: each by itself, or by what the layer makes of sample texts."""

    NEAREST = "nearest"
    GPTQ = "gptq"
    AWQ = "awq"


class Grouping(StrEnum):
    """How many weights of a row share a scale; ``auto``: 128, 64 or 32, the most that fits into every layer."""

    AUTO = "auto"
    G32 = "32"
    G64 = "64"
    G128 = "128"
    ROW = "row"


class Ranges(StrEnum):
    """Whether a group's integers reach equally far on both sides of zero."""

    ASYMMETRIC = "asymmetric"
    SYMMETRIC = "symmetric"


class Structure(StrEnum):
    """What is taken out by pruning."""

    WEIGHTS = "weights"
    TWO_OF_FOUR = "2:4"
    NEURONS = "neurons"
    HEADS = "heads"
    LAYERS = "layers"


class Criterion(StrEnum):
    """By what pruning chooses."""

    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    ACTIVATION = "activation"
    TAYLOR = "taylor"


class Scope(StrEnum):
    """Among what pruning chooses: the weights of one output, of one layer (or matrix), or anywhere in the model.

    ``auto``: as the method was published, Wanda among the weights of each output, the others within each layer.
    """

    AUTO = "auto"
    OUTPUT = "output"
    LAYER = "layer"
    GLOBAL = "global"


class Scaling(StrEnum):
    """What a low-rank factorization keeps best: a matrix's effect on real activations, or its numbers."""

    ACTIVATION = "activation"
    NONE = "none"


class Imitation(StrEnum):
    """What a student learns of its teacher."""

    LOGITS = "logits"
    HIDDEN = "hidden"
    BOTH = "both"


class Start(StrEnum):
    """What a training starts from: the weights there are, or new random ones."""

    WEIGHTS = "weights"
    RANDOM = "random"


class TrainedFormat(StrEnum):
    """A format that a fine-tuning can prepare weights for."""

    INT8 = "int8"
    INT4 = "int4"
    NF4 = "nf4"
