"""Models as transformers makes them: from the files of a folder, or with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging as hf_logging

from engine.catalog import ModelRef
from engine.compress.loading import check_not_prepared
from engine.devices import is_out_of_memory, torch_dtype
from engine.random_weights import fill
from engine.tokenizers import SyntheticTokenizer, Tokenizer, load_tokenizer
from spec.choices import Attention, Backend, Dtype
from spec.errors import ModelError, SpecError, shorten, shorten_path

hf_logging.disable_progress_bar()
hf_logging.set_verbosity_error()  # its reports on damaged folders are tables; ours are one sentence


def saved(ref: ModelRef, device: torch.device, dtype: Dtype, attention: Attention) -> tuple[Any, Tokenizer, int]:
    """A model from its folder, its tokenizer, and how many weights it has no use for. Errors as ``read_weights``."""
    assert ref.path is not None
    model, unused = read_weights(AutoModelForCausalLM, ref.path, device, dtype, attention)
    tokenizer = load_tokenizer(str(ref.path), model.generation_config)
    # What the spec does not say must not come from a file beside the weights: a model's own sampling defaults
    # (temperature, repetition penalty) would change what "greedy" means from model to model.
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_id, eos_token_id=sorted(tokenizer.stop_ids) or None
    )
    return model, tokenizer, unused


def made(ref: ModelRef, device: torch.device, dtype: Dtype, attention: Attention) -> tuple[Any, Tokenizer, int]:
    """A model of that shape with random weights, and a tokenizer that stands for one."""
    values = dict(ref.config)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = fill(
        lambda: AutoModelForCausalLM.from_config(
            config,
            dtype=torch_dtype(dtype),
            attn_implementation=implementation(attention),
            trust_remote_code=False,
        ),
        device,
    )
    tokenizer = SyntheticTokenizer(config.vocab_size)
    model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_id)
    return model.eval(), tokenizer, 0


def read_weights(
    auto_class: Any, folder: Path, device: torch.device, dtype: Dtype, attention: Attention
) -> tuple[Any, int]:
    """``auto_class.from_pretrained(folder)`` from safetensors alone; (model, weights in the files it has no use for).

    A weight that the model needs and the files lack is an error: transformers would make it up.
    """
    shown = shorten_path(folder)
    try:
        model, report = auto_class.from_pretrained(
            str(folder),
            dtype=torch_dtype(dtype),
            attn_implementation=implementation(attention),
            device_map={"": device} if device.type == "cuda" else None,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise explained(shown, attention, error) from None
    lacking = sorted(report["missing_keys"]) + sorted(str(k) for k in report["mismatched_keys"])
    if lacking:
        check_not_prepared(folder)
        raise ModelError(
            f"{shown} lacks {len(lacking)} of the weights its config asks for, e.g. {lacking[0]}; save it again."
        )
    return model.eval(), len(report["unexpected_keys"])


@torch.inference_mode()
def unpack(model: Any) -> None:
    """One token through a model that another library has quantized: some unpack their weights only when they first run.

    What is measured later, sizes too, is then of the model as it runs.
    """
    model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)


def implementation(attention: Attention) -> str | None:
    """What transformers calls it; None for its own choice, which our runtime puts its attention in place of."""
    if attention.backend is not Backend.TRANSFORMERS:
        return None
    return {Attention.EAGER: "eager", Attention.FLEX: "flex_attention"}.get(attention, "sdpa")


def import_architecture(ref: ModelRef) -> None:
    """Import the Python module of the architecture, so that ``load_s`` is the weights' time alone."""
    config_class = CONFIG_MAPPING.get(ref.config.get("model_type"), None)
    if config_class is not None:
        MODEL_FOR_CAUSAL_LM_MAPPING.get(config_class, None)


def explained(shown: str, attention: Attention, error: Exception) -> ModelError | SpecError:
    """What went wrong in transformers, for the user. ``shown``: the model's name."""
    text = " ".join(str(error).split())
    name = implementation(attention)
    if name is not None and name in text and "attention" in text.lower():
        return SpecError(f"{shown} has no {attention} attention; choose auto or eager.", field="runtime.attention")
    if isinstance(error, ImportError):  # transformers says which library reads the model's format, and how to get it
        return ModelError(f"{shown} needs a library that is not installed here: {text[:200].rstrip('. ')}.")
    return ModelError(
        f"{shown} does not load as a causal language model ({type(error).__name__}: {shorten(text, 120)}); check that "
        "its config.json and weights belong together and that transformers knows its architecture."
    )
