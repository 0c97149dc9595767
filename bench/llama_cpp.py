"""llama.cpp on the same weights: written as GGUF in fp32, driven by token ids through its C interface.

Needs ``llama-cpp-python`` and ``gguf``, which are no requirements of Isoquant (the former compiles for some minutes).
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch

from bench.record import Figure
from bench.sides import drive, in_turns, model, ours, prompts, rows

NAME = "lab-m"
LIMIT = 160
CONTEXT = 512


def figures(quick: bool, tries: int) -> Sequence[Figure]:
    """Greedy decoding at batch 32 and at batch 1, ours against llama.cpp."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.gguf")
        write(path)
        return [
            _figure(path, "llama_cpp_batch_32", 32, 32 if quick else 128, tries),
            _figure(path, "llama_cpp_batch_1", 1, 2 if quick else 8, tries),
        ]


def _figure(path: Path, name: str, batch_size: int, problems: int, tries: int) -> Figure:
    contexts = prompts(NAME, problems)
    mine, peer = ours(NAME, batch_size), LlamaCpp(path, batch_size)
    made: dict[str, list[tuple[int, ...]]] = {}

    def us() -> float:
        mine.forget()
        seconds, grown = drive(mine, rows(contexts, LIMIT))
        made["ours"] = [g.extension.ids for g in grown]
        return seconds

    def them() -> float:
        started = time.perf_counter()
        made["peer"] = peer.generate(contexts, LIMIT)
        return time.perf_counter() - started

    us(), them()
    a, b = in_turns(tries, us, them)
    mine.close()
    tokens = [sum(len(ids) for ids in made[side]) for side in ("ours", "peer")]
    same = sum(x == y for x, y in zip(made["ours"], made["peer"], strict=True))
    note = f"{same} of {problems} outputs equal"
    return Figure(name, tokens[0] / a, tokens[1] / b, tokens[0] / a / (tokens[1] / b), "tokens/s", note)


class LlamaCpp:
    """A llama.cpp context of ``batch_size`` sequences; its own continuous batching, as its server does it."""

    def __init__(self, path: Path, batch_size: int) -> None:
        llama_cpp.llama_log_set(_QUIET, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx, wanted.n_seq_max = CONTEXT * batch_size, batch_size
        wanted.n_batch = wanted.n_ubatch = 512
        wanted.n_threads = wanted.n_threads_batch = torch.get_num_threads()
        wanted.type_k = wanted.type_v = 0  # fp32, as ours
        self._context = llama_cpp.llama_init_from_model(self._model, wanted)
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)
        self._size = batch_size
        self._vocab = model(NAME).sizes.vocab
        self._ends = model(NAME).tokenizer.stop_ids

    def generate(self, contexts: Sequence[tuple[int, ...]], limit: int) -> list[tuple[int, ...]]:
        """Greedy texts of all contexts; a place that becomes free is filled at once."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        found: list[list[int]] = [[] for _ in contexts]
        waiting, free = list(range(len(contexts)))[::-1], list(range(self._size))[::-1]
        running: dict[int, int] = {}  # place -> problem
        while waiting or running:
            while waiting and free:
                place, problem = free.pop(), waiting.pop()
                running[place] = problem
                token = self._step(
                    [(place, at, t) for at, t in enumerate(contexts[problem])], [len(contexts[problem]) - 1]
                )
                found[problem] += token
                self._finish(place, problem, found, limit, running, free)
            if not running:
                continue
            places = list(running)
            row = [(p, len(contexts[running[p]]) + len(found[running[p]]) - 1, found[running[p]][-1]) for p in places]
            for place, token in zip(places, self._step(row, range(len(row))), strict=True):
                found[running[place]].append(token)
            for place in places:
                self._finish(place, running[place], found, limit, running, free)
        return [tuple(ids) for ids in found]

    def _finish(
        self, place: int, problem: int, found: list[list[int]], limit: int, running: dict[int, int], free: list[int]
    ) -> None:
        if found[problem][-1] in self._ends or len(found[problem]) >= limit:
            llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), place, -1, -1)
            del running[place]
            free.append(place)

    def _step(self, some: Sequence[tuple[int, int, int]], wanted: Sequence[int]) -> list[int]:
        """Process (place, position, token) and return the most likely next token behind each wanted one."""
        batch, asked = self._batch, set(wanted)
        batch.n_tokens = len(some)
        for i, (place, position, token) in enumerate(some):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = place, i in asked
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp could not process a batch")
        return [int(np.argmax(self._logits(i))) for i in wanted]

    def _logits(self, index: int) -> np.ndarray:
        address = llama_cpp.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(address, shape=(self._vocab,))


@llama_cpp.llama_log_callback
def _QUIET(level: int, text: bytes, data: object) -> None:  # noqa: N802
    """Say nothing."""


def write(path: Path) -> None:
    """The lab model as GGUF in fp32. Its tokenizer is not needed: both sides are given token ids."""
    loaded = model(NAME)
    config, weights = loaded.config, loaded.model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in weights.items():
        if name == "lm_head.weight":  # tied to the embedding
            continue
        values = tensor.float().numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if ".q_proj" in name else config.num_key_value_heads
            # llama.cpp rotates neighbouring pairs, transformers the two halves of a head.
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
