"""The family's tokenizer: byte-level BPE in which every digit and every newline is a token of its own.

python -m lab.tokenizer        # trains it and writes it into every model folder
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lab.family import BOS, CONTEXT, EOS, MODELS, PAD, SIZES
from tasks import lab_words

VOCABULARY = 768
TRAINING_PROBLEMS = 6000


def train_tokenizer(problems: int = TRAINING_PROBLEMS) -> PreTrainedTokenizerFast:
    """Train on generated problems and solutions; every other text still encodes, byte by byte where it must."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Newlines end the steps of a solution: never part of a longer token.
            pre_tokenizers.Split(Regex("\n"), behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    examples = lab_words.problems("train", problems)
    tokenizer.train_from_iterator((f"{lab_words.prompt(p)}{p.solution}" for p in examples), trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: Path = MODELS / "lab-xs") -> PreTrainedTokenizerFast:
    """The committed tokenizer; all models of the family hold the same files."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


if __name__ == "__main__":
    trained = train_tokenizer()
    for folder in (MODELS / name for name in SIZES if (MODELS / name).exists()):
        trained.save_pretrained(folder)
    print(f"{len(trained)} tokens")
