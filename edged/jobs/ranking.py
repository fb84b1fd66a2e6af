"""Jobs that rank documents: their fields, and the request for the engine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from edged.engine.loaded_model import LoadedModel
from edged.engine.ranking import Ranking
from edged.engine.splits import LEAST_CHUNK
from edged.jobs.refusals import refuse

MAX_DOCUMENTS = 100
DOCUMENTS_ALLOWED = f"a list of 1 to {MAX_DOCUMENTS} texts that are not empty"
INSTRUCTION = "Does the document answer the query? Answer with yes or no."
"""What the model is asked, where the job says nothing else."""
GO_TOGETHER = frozenset(
    "id query documents instruction chat_template_kwargs priority store cache metadata model ttl deadline".split()
)
"""The fields of a job that ranks."""
_YES, _NO = ("yes", "Yes"), ("no", "No")


class UnrankableError(ValueError):
    """The model cannot rank; the message says why."""


def check_documents(query: str | None, documents: Sequence[str] | None, instruction: str | None) -> None:
    """Refuse, within a validator, a query without documents, and the other way round."""
    if documents is None:
        for field, value in (("query", query), ("instruction", instruction)):
            if value is not None:
                refuse(field, "needs documents: send them, or leave it out")
        return
    if not query:
        refuse("query", "must be there beside documents, text that is not empty")
    if not all(documents):
        refuse("documents", f"must be {DOCUMENTS_ALLOWED}")


def messages_about(document: str, query: str, instruction: str) -> list[dict[str, str]]:
    """The chat that asks about one document."""
    content = f"Query: {query}\n\nDocument: {document}"
    return [{"role": "system", "content": instruction}, {"role": "user", "content": content}]


def ranking_of(prompts: Sequence[Sequence[int]], loaded: LoadedModel) -> tuple[tuple[int, ...], Ranking]:
    """What `prompts` begin with, and the ranking of what follows. Raises UnrankableError."""
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    begun = [column[0] for column in same][: min(map(len, prompts)) - LEAST_CHUNK]
    if not begun:
        raise UnrankableError("its chat template puts nothing before a message")
    rest = tuple(tuple(prompt[len(begun) :]) for prompt in prompts)
    yes, no = (_first_tokens(texts, loaded) for texts in (_YES, _NO))
    if not yes or not no or set(yes) & set(no):
        raise UnrankableError("its tokenizer begins yes and no with the same token")
    grain = loaded.splits.grain
    return tuple(begun), Ranking(rest, yes, no, len(begun) // grain * grain)


def _first_tokens(texts: Sequence[str], loaded: LoadedModel) -> tuple[int, ...]:
    spelt = (loaded.tokenizer.spell(text) for text in texts)
    return tuple(sorted({tokens[0] for tokens in spelt if tokens}))
