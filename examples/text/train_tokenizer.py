"""Train the example's tokenizer on its text: a byte-level BPE, written to ``tokenizer.json``.

    python -m examples.text.train_tokenizer

The same text gives the same file. Byte-level, so that any other text can be encoded too.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

FOLDER = Path(__file__).parent
TEXT = FOLDER / "overlap.txt"
TOKENIZER = FOLDER / "tokenizer.json"

VOCABULARY = 1024
"""Enough that a token is a word or a part of one; the text is short, and most of it is common."""


def train(text: str) -> Tokenizer:
    """A byte-level BPE of ``VOCABULARY`` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def main() -> None:
    """Train and write the file."""
    tokenizer = train(TEXT.read_text())
    tokenizer.save(str(TOKENIZER))
    tokens = len(tokenizer.encode(TEXT.read_text()).ids)
    print(f"{TOKENIZER}: {tokenizer.get_vocab_size()} tokens; the text has {tokens} of them")


if __name__ == "__main__":
    main()
