"""The alias ``tiny``: a byte-level Llama of 0.1 million parameters, made on the spot for tests and first tries.

It is briefly trained on English sentences drawn from the small grammar below, so that it knows what words and spaces
are; adapters then have something to build on. Everything is seeded and runs on one thread: the same machine makes the
same bytes. It knows nothing of where it is kept (``base_models.py``).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import cast

from peer.training.frames import Progress
from peer.training.libraries import BaseModel, Tokenizer

SUBJECTS = """
the old sailor|my sister|a small dog|the teacher|our neighbor|the river|every student|a tired baker|the moon
nobody here|the young doctor|that machine|a quiet child|the mayor of the town|the wind|an honest farmer"""
VERBS = """
sees|finds|carries|remembers|paints|follows|cannot forget|has lost|will bring|often mentions|never liked
quietly watches|might repair|once sold|keeps|is thinking about"""
OBJECTS = """
the blue boat|a long letter|three apples|the way home|an open window|the broken clock|fresh bread|a warm coat
her grandfather's book|the last train|two silver coins|the garden behind the house|a good story|what we said
the name of the street|yesterday's newspaper"""
ENDINGS = """
in the morning|before it rains|with great care|near the harbor|for no reason|when the bells ring|as usual
after dinner|at the end of the year|because of the cold|without a word|under the bridge"""
QUESTIONS = """
How are you today?|What time is it?|Where do you come from?|Can you help me with this?|Do you like music?
Who wrote that song?|Why is the sky so dark?|Is there any water left?"""
"""The grammar: phrases between bars or on lines of their own."""

HIDDEN = 64
LAYERS = 2
STEPS = 120
BATCH = 16
LENGTH = 64
LEARNING_RATE = 5e-3
"""Size and pre-training. Source: our bench: 3 s on a core; more steps learn this grammar by heart and make the base
worse at anything else (300 steps: 6.8 nats a byte on other languages, 120: 4.3).
"""


def make(folder: Path, progress: Progress) -> None:
    """Write model and tokenizer into ``folder``; the same bytes each time on one machine."""
    import torch

    torch.set_num_threads(1)
    tokenizer = byte_tokenizer()
    model = fresh_model(tokenizer, seed=0)
    text = torch.tensor(tokenizer(english(200_000))["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(STEPS):
        if step % 25 == 0:
            progress("convert", step / STEPS)
        starts = torch.randint(0, len(text) - LENGTH, (BATCH, 1))
        batch = text[starts + torch.arange(LENGTH)]  # [BATCH, LENGTH]
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    progress("save", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fresh_model(tokenizer: Tokenizer, seed: int) -> BaseModel:
    """Return an untrained Llama for a tokenizer of bytes; torch's generator goes on from the seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer of 256 bytes and the specials ``<end>`` (256) and ``<pad>`` (257); no chat template."""
    from tokenizers import Tokenizer as TokenizerBackend
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: code for code, letter in enumerate(alphabet)}
    backend = TokenizerBackend(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types there
        tokenizer_object=backend, eos_token="<end>", pad_token="<pad>", model_max_length=512
    )
    return cast("Tokenizer", tokenizer)  # it gives most of its attributes at run time


def english(length: int) -> str:
    """Return at least ``length`` letters of grammatical, meaningless English."""
    draw = random.Random(0)
    clauses = [phrases(words) for words in (SUBJECTS, VERBS, OBJECTS, ENDINGS)]
    questions = phrases(QUESTIONS)
    sentences: list[str] = []
    written = 0
    while written < length:
        if draw.random() < 0.15:
            sentence = draw.choice(questions)
        else:
            sentence = " ".join(draw.choice(clause) for clause in clauses).capitalize() + "."
        sentences.append(sentence)
        written += len(sentence) + 1
    return " ".join(sentences)


def phrases(text: str) -> list[str]:
    """Return the phrases of one part of the grammar."""
    return text.strip().replace("\n", "|").split("|")
