"""Corpora of sources, by which evaluation texts are in domain or out of domain."""

from __future__ import annotations

import pytest

from intraslice_core.text_sources import corpus_of, domain_of, in_domain_only


@pytest.mark.parametrize(
    ("source", "other"),
    [
        ("pydoc", "pydoc"),
        ("hub:Salesforce/wikitext:wikitext-2-raw-v1@train", "hub:Salesforce/wikitext@test"),
        ("hub:wikitext", "hub:Salesforce/wikitext"),
        ("hub:allenai/c4:en", "hub:allenai/c4:de@validation"),
        ("/data/wikitext2.valid.txt.gz", "/elsewhere/WikiText2.raw.test.txt.gz"),
        ("wikitext-103.train.parquet", "hub:Salesforce/wikitext@test"),
        ("/data/c4-00001-of-00128.jsonl", "/data/c4-00002-of-00128.jsonl.zst"),
        ("/data/mails/train.jsonl", "/data/mails/test.jsonl"),
        ("/data/mails/train/0001.txt", "/data/mails/valid/0001.txt"),
        ("train.txt", "test.txt"),
    ],
)
def test_sources_of_one_corpus(source: str, other: str) -> None:
    assert corpus_of(source) == corpus_of(other)
    assert domain_of(source, ["chat", other]) == domain_of(other, [source]) == "in"


@pytest.mark.parametrize(
    ("source", "other"),
    [
        ("pydoc", "pycode"),
        ("self", "chat"),
        ("chat", "/data/chat.jsonl"),
        ("hub:org/mails", "hub:org/wiki"),
        ("/data/mails.txt", "/data/wiki.txt"),
        ("/data/mails/train.jsonl", "/data/wiki/test.jsonl"),
        ("/data/mails.train.txt", "hub:Salesforce/wikitext"),
        ("/1/train.txt", "/2/train.txt"),
        ("/data/\u4e2d\u6587.txt", "/data/mails.txt"),
    ],
)
def test_sources_of_different_corpora(source: str, other: str) -> None:
    assert corpus_of(source) != corpus_of(other)
    assert domain_of(source, [other]) == domain_of(other, [source]) == "out"


def test_without_a_text_out_of_domain_an_evaluation_is_in_domain_only() -> None:
    seen = ("wiki.train.txt", "chat")
    assert in_domain_only(seen, ["wiki.test.txt"])
    assert not in_domain_only(seen, ["wiki.test.txt", "pydoc"])
    assert not in_domain_only(seen, [])
