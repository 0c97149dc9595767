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
ROOM = 512  # tokens in a step, as ours


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
    """Against the faster of llama.cpp's two ways, which depends on the batch."""
    contexts = prompts(NAME, problems)
    mine = ours(NAME, batch_size)
    peers = {flash: LlamaCpp(path, batch_size, flash) for flash in (False, True)}
    made: dict[object, list[tuple[int, ...]]] = {}

    def us() -> float:
        mine.forget()
        seconds, grown = drive(mine, rows(contexts, LIMIT))
        made["ours"] = [g.extension.ids for g in grown]
        return _each(seconds, made["ours"])

    def them(flash: bool) -> float:
        started = time.perf_counter()
        made[flash] = peers[flash].generate(contexts, LIMIT)
        return _each(time.perf_counter() - started, made[flash])

    us(), them(False), them(True)
    a, plain, fused = in_turns(tries, us, lambda: them(False), lambda: them(True))
    mine.close()
    b, flash = min((plain, False), (fused, True))
    same = sum(x == y for x, y in zip(made["ours"], made[flash], strict=True))
    how = "flash attention, fp16 cache" if flash else "no flash attention, fp32 cache"
    return Figure(name, 1 / a, 1 / b, b / a, "tokens/s", f"{same} of {problems} outputs equal; llama.cpp with {how}")


def _each(seconds: float, made: Sequence[Sequence[int]]) -> float:
    """Seconds for a token."""
    return seconds / sum(len(ids) for ids in made)


class LlamaCpp:
    """A llama.cpp context of ``batch_size`` sequences; its own continuous batching, as its server does it.

    ``flash``: its fused attention, which wants the KV cache in fp16; the other way has it in fp32, as ours.
    """

    def __init__(self, path: Path, batch_size: int, flash: bool) -> None:
        llama_cpp.llama_log_set(_QUIET, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx, wanted.n_seq_max = CONTEXT * batch_size, batch_size
        wanted.n_batch = wanted.n_ubatch = ROOM
        wanted.n_threads = wanted.n_threads_batch = torch.get_num_threads()
        wanted.flash_attn_type = wanted.type_k = wanted.type_v = int(flash)  # types 0 and 1 are fp32 and fp16
        self._context = llama_cpp.llama_init_from_model(self._model, wanted)
        self._batch = llama_cpp.llama_batch_init(ROOM, 0, 1)
        # Filled and read as arrays: element by element, Python would take a good part of llama.cpp's time.
        names = ("token", "pos", "n_seq_id", "logits")
        self._fields = [np.ctypeslib.as_array(getattr(self._batch, name), shape=(ROOM,)) for name in names]
        self._fields[2][:] = 1
        self._places = [self._batch.seq_id[i] for i in range(ROOM)]
        self._size = batch_size
        self._vocab = model(NAME).sizes.vocab
        self._ends = model(NAME).tokenizer.stop_ids

    def generate(self, contexts: Sequence[tuple[int, ...]], limit: int) -> list[tuple[int, ...]]:
        """Greedy texts of all contexts; a place that becomes free is filled at once."""
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_clear(memory, True)
        found: list[list[int]] = [[] for _ in contexts]
        waiting, free = list(range(len(contexts)))[::-1], list(range(self._size))[::-1]
        running: dict[int, int] = {}  # place -> problem
        while waiting or running:
            work = [(p, len(contexts[i]) + len(found[i]) - 1, found[i][-1:]) for p, i in running.items()]
            left = ROOM - len(work)
            while waiting and free and len(contexts[waiting[-1]]) <= left:  # prompts go with the step, whole
                place, problem = free.pop(), waiting.pop()
                running[place] = problem
                work.append((place, 0, list(contexts[problem])))
                left -= len(contexts[problem])
            for (place, _, _), token in zip(work, self._step(work), strict=True):
                ids = found[running[place]]
                ids.append(token)
                if token in self._ends or len(ids) >= limit:
                    llama_cpp.llama_memory_seq_rm(memory, place, -1, -1)
                    del running[place]
                    free.append(place)
        return [tuple(ids) for ids in found]

    def _step(self, work: Sequence[tuple[int, int, list[int]]]) -> list[int]:
        """Process (place, first position, tokens) of some sequences; the most likely next token of each."""
        token, position, _, wanted = self._fields
        at = 0
        for place, first, ids in work:
            end = at + len(ids)
            token[at:end] = ids
            position[at:end] = range(first, first + len(ids))
            wanted[at:end] = 0
            wanted[end - 1] = 1
            for i in range(at, end):
                self._places[i][0] = place
            at = end
        self._batch.n_tokens = at
        if llama_cpp.llama_decode(self._context, self._batch):
            raise RuntimeError("llama.cpp could not process a batch")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), shape=(len(work), self._vocab))
        return [int(t) for t in logits.argmax(-1)]


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
