"""Our own runtime as a back end: continuous batches over a paged cache, prefixes shared, one batcher for each model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.backends.rows import Grown, OnStep, Row
from engine.backends.stopping import Endings
from engine.decoding.requests import Extension
from engine.devices import available_bytes, does_not_fit, is_out_of_memory, release
from engine.measure.time import now, synchronise
from engine.models import LoadedModel
from engine.recording import Unrecordable
from engine.runtime.batcher import Batcher
from engine.runtime.blocks import BLOCK, BlockPool, NoRoom
from engine.runtime.drafting import Drafter, LookupDrafter, ModelDrafter
from engine.runtime.family import FAMILY
from engine.runtime.plan import Plan
from engine.runtime.runner import Runner
from engine.runtime.support import ANY, Unsupported, runner_for
from engine.runtime.way import Way
from spec.errors import SpecError

AFTER_A_CHECK = 2  # tokens that a draft model has not read: its last guess, and the one that the check gave
SHARE = {"cpu": 0.4, "cuda": 0.85}  # of the memory that is free may become KV cache
SPARE = 2  # blocks for what a search may come back to, beside those of the sequences at work


@dataclass(frozen=True, slots=True)
class Layout:
    """``plan`` for batches; ``longest``: tokens of the longest sequence expected; ``share``: prefixes are looked up.

    ``drafts``: whether sequences have tokens guessed for them: None no, "" from their own text, else by that model;
    ``guesses``: how many before each check.
    ``exits``: whether tokens may leave the model early. ``blocks``: of KV cache, None for as many as are of use and
    fit. ``way``: how models are run, as far as that was chosen. ``sole``: nobody else runs the models until the back
    end is closed, which saves memory.
    """

    plan: Plan
    longest: int
    share: bool = True
    drafts: str | None = None
    guesses: int = 0
    exits: bool = False
    blocks: int | None = None
    way: Way = ANY
    sole: bool = False


class IsoquantBackend:
    """See Backend. ``models``: the run's own under None, others by the names that rows call them."""

    name = "isoquant"
    goes_on = False

    def __init__(self, models: Mapping[str | None, LoadedModel], layout: Layout) -> None:
        self.loaded = models[None]
        self._layout = layout
        self._runners: list[Runner] = []
        self._pools: list[tuple[BlockPool, int]] = []
        self._batchers: dict[str | None, Batcher] = {}
        self._drafter: Drafter | None = None
        self._ended: list[tuple[Row, Grown]] = []
        try:
            self._build(models)
        except BaseException:
            self.close()
            raise

    def _build(self, models: Mapping[str | None, LoadedModel]) -> None:
        layout, draft = self._layout, self._layout.drafts
        if draft == "":
            self._drafter = LookupDrafter()
        elif draft is not None:
            _check_same_words(self.loaded, models[draft])
            runner, pool = self._run(models[draft], AFTER_A_CHECK)
            self._drafter = ModelDrafter(runner, pool, layout.plan.batch_size, models[draft].context)
        for name, loaded in models.items():
            if name is not None and loaded.model is self.loaded.model:
                self._batchers[name] = self._batchers[None]
            elif name is None or name != draft:
                runner, pool = self._run(loaded, layout.guesses + 1)
                drafter = self._drafter if name is None else None
                self._batchers[name] = Batcher(runner, pool, Endings(loaded.tokenizer), layout.plan, drafter)

    def _run(self, loaded: LoadedModel, new: int) -> tuple[Runner, BlockPool]:
        """``new``: tokens of a sequence that its steps often feed instead of one."""
        try:
            runner = runner_for(loaded.model, loaded.device, self._layout.way, self._layout.sole)
        except Unsupported as error:
            raise self._unsupported(loaded, error) from None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            free = available_bytes(loaded.device)
            what = f"The weights of {loaded.name}, laid out anew,"
            raise does_not_fit(what, None, free, loaded.device, "choose a smaller model or number format.") from None
        self._runners.append(runner)
        if self._layout.exits and not hasattr(runner, "exiting"):
            raise SpecError(
                f"{loaded.name} cannot be left before its last layer: only our own forward pass can be, which runs the "
                f"Llama family on a processor with a C++ compiler ({', '.join(FAMILY)}).",
                field="strategy",
            )
        pool = BlockPool(self._blocks(loaded, runner), share=self._layout.share and self._layout.plan.kv_cache)
        try:
            runner.allocate(pool.count, self._layout.plan.batch_size, self._layout.longest, new)
        except Unrecordable as error:
            raise _unrecordable(loaded, error) from None
        self._pools.append((pool, runner.block_bytes))
        return runner, pool

    def _unsupported(self, loaded: LoadedModel, error: Unsupported) -> SpecError:
        if self._layout.way == ANY:
            advice, field = "choose the transformers back end", "backend"
        else:
            advice, field = "leave attention, fusion and KV cache at auto, or choose another model", "attention"
        return SpecError(
            f"{loaded.name} does not run so on the isoquant back end: {error}; {advice}.", field=f"runtime.{field}"
        )

    def _blocks(self, loaded: LoadedModel, runner: Runner) -> int:
        """How many KV blocks: enough for a full batch and some more, within the memory there is."""
        if self._layout.blocks is not None:
            return self._layout.blocks
        longest = min(self._layout.longest, loaded.context or self._layout.longest)
        one = -(-longest // BLOCK) + 1
        free = available_bytes(loaded.device)
        fitting = int(free * SHARE[loaded.device.type]) // runner.block_bytes
        if fitting < one:
            what = f"The KV cache of one sequence of {longest:,} tokens in {loaded.name}"
            raise does_not_fit(what, one * runner.block_bytes, free, loaded.device, "lower task.max_new_tokens.")
        return min(fitting, SPARE * self._layout.plan.batch_size * one)

    # ---- Backend

    @property
    def attention(self) -> str:
        """What computes, for the record: of several models each way once."""
        return " + ".join(dict.fromkeys(r.name for r in self._runners))

    @property
    def kv_bytes_peak(self) -> int | None:
        """Bytes of the blocks that sequences held at once; what is only kept to be found again is not counted."""
        return sum(pool.peak * size for pool, size in self._pools)

    def forget(self) -> None:
        """Forget what was computed, and the peak, so that what follows starts cold."""
        for pool, _ in self._pools:
            pool.clear()

    @property
    def wanting(self) -> bool:
        """See Backend."""
        return all(b.wanting for b in self._batchers.values())

    @property
    def busy(self) -> bool:
        """See Backend."""
        return bool(self._ended) or any(b.busy for b in self._batchers.values())

    def submit(self, rows: Sequence[Row]) -> None:
        """See Backend."""
        for name, group in itertools.groupby(rows, key=lambda r: r.model):
            some = list(group)
            self._ended += [(r, Grown(Extension("", (), "length"), now(), ())) for r in some if _is_nothing(r)]
            self._batchers[name].submit([r for r in some if not _is_nothing(r)])

    def step(self, on_step: OnStep) -> list[tuple[Row, Grown]]:
        """See Backend: one forward pass of each model that has work."""
        ended, self._ended = self._ended, []
        for batcher in dict.fromkeys(self._batchers.values()):
            if batcher.busy:
                try:
                    ended += batcher.step(on_step)
                except NoRoom:
                    raise self._too_small() from None
                except Unrecordable as error:
                    raise _unrecordable(self.loaded, error) from None
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    raise self._too_large() from None
        if ended:
            synchronise(str(self.loaded.device))
        return ended

    def close(self) -> None:
        """Give the cache back and leave the models as they were found."""
        for runner in self._runners:
            runner.close()
        self._runners.clear()
        self._batchers.clear()
        release(self.loaded.device)

    def _too_small(self) -> Exception:
        tokens = min(pool.count for pool, _ in self._pools) * BLOCK
        what = f"A sequence of more than {tokens:,} tokens in {self.loaded.name}"
        free = available_bytes(self.loaded.device)
        return does_not_fit(
            what, None, free, self.loaded.device, "lower task.max_new_tokens or choose a smaller model."
        )

    def _too_large(self) -> Exception:
        release(self.loaded.device)
        size = self._layout.plan.batch_size
        advice = f"try batch size {size // 2}." if size > 1 else "choose a smaller model, number format or task."
        what = f"{size} sequences of {self.loaded.name} at once"
        return does_not_fit(what, None, available_bytes(self.loaded.device), self.loaded.device, advice)


def _unrecordable(loaded: LoadedModel, error: Unrecordable) -> SpecError:
    return SpecError(
        f"A decoding step of {loaded.name} cannot be recorded as a CUDA graph ({error}); choose graphs auto or off.",
        field="runtime.graphs",
    )


def _is_nothing(row: Row) -> bool:
    """Whether a row asks for nothing: its context fills the model's."""
    return row.limit <= 0 and not row.peek and not row.replay


def _check_same_words(target: LoadedModel, draft: LoadedModel) -> None:
    """A draft model's tokens must mean the same to the model that verifies them. Raises SpecError."""
    if target.model is draft.model:
        raise SpecError(f"{draft.name} would guess for itself; choose a smaller draft model.", field="strategy")
    probe = "Ada has 12 apples.\nSo 3 * 4 = 12."
    a, b = target.tokenizer, draft.tokenizer
    assert target.sizes is not None
    assert draft.sizes is not None
    if target.sizes.vocab != draft.sizes.vocab or a.encode(probe) != b.encode(probe):
        raise SpecError(
            f"{draft.name} has another vocabulary than {target.name}, so it cannot guess for it; choose a draft model "
            "of the same family, or the strategy lookup.",
            field="strategy",
        )
