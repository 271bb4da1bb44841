"""The word-level tokenizers, without transformers: light enough for every data process."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from training.captions import vocabulary

TEXT_TOKENS = 24
"""Tokens that both text encoders read; the longest caption has 22."""

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
PAD, UNK, BOS, EOS = range(len(SPECIAL))


def word_count() -> int:
    """Size of the vocabulary, special tokens included."""
    return len(SPECIAL) + len(vocabulary())


def make_tokenizer(*, with_start: bool) -> Tokenizer:
    """One token a word, lower case, punctuation but the comma left out; CLIP's begins with a start token."""
    ids = {word: index for index, word in enumerate([*SPECIAL, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s,]"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if with_start else "$A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return tokenizer


def encode(texts: list[str], *, with_start: bool) -> list[list[int]]:
    """Token ids, padded and cut to ``TEXT_TOKENS``."""
    tokenizer = make_tokenizer(with_start=with_start)
    tokenizer.enable_padding(pad_id=PAD, pad_token="<pad>", length=TEXT_TOKENS)
    tokenizer.enable_truncation(TEXT_TOKENS)
    return [found.ids for found in tokenizer.encode_batch(texts)]
