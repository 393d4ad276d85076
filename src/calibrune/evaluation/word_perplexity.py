"""Word perplexity of whole documents, as lm-evaluation-harness's task `wikitext` has it.

It is another number than the pruning papers': text is put back as it was before it was tokenized into words, every
document begins anew, every token is predicted, and the loss is shared out over words, so that models with different
tokenizers can be compared. What turns a page into text and counts its words is the harness's own code, as installed.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from calibrune.errors import CorpusError
from calibrune.evaluation.averages import TokenMean, of_independent
from calibrune.evaluation.perplexity import check_limit, perplexity_of, what_was_measured
from calibrune.evaluation.score import Score
from calibrune.evaluation.tasks import harness_version
from calibrune.lm.loading import LanguageModel
from calibrune.progress import track
from calibrune.settings import settings


@settings
class WordPerplexity:
    """Whole documents, detokenised; the loss of all their tokens over all their words: the harness's `wikitext`.

    The value is exp of minus the log-likelihood of all documents over the number of their words, which are counted
    before the text is put back. A document longer than the model's context is read in windows of it, each token
    predicted once, the first one after BOS (or EOS, where there is no BOS). Items: a document's loss over the mean
    number of words of a document. The standard error takes the documents for independent; the harness gives none.
    """

    @property
    def name(self) -> str:
        return "word_perplexity"

    def describe(self) -> dict[str, Any]:
        return {"protocol": self.name, "task": "wikitext", "harness": harness_version()}

    def score(self, lm: LanguageModel, texts: Iterable[str], limit: int | None = None) -> Score:
        """The word perplexity of the first `limit` documents, or of all; blank ones are left out.

        Args:
            texts: one for each document, in the notation of WikiText (`wikitext_pages`).

        Raises:
            ConfigError: the harness is not installed.
            CorpusError: there is no text in the documents.
        """
        version = self.describe()  # first: says what to install
        from lm_eval.api.instance import Instance
        from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

        from calibrune.evaluation.language_model import SharedContextLM

        check_limit(limit)
        pages = list(islice(texts, limit))
        chosen = [page for page in pages if page.strip()]
        if not chosen:
            raise CorpusError(f"none of the {len(pages)} documents has a word in it; name a file with text")
        reader = SharedContextLM(lm)
        losses, words = [], []
        for page in track(chosen, "documents"):
            text = wikitext_detokenizer({"page": page})
            request = Instance("loglikelihood_rolling", {}, (text,), 0)
            (log_likelihood,) = reader.loglikelihood_rolling([request])
            _, n_words = process_results({"page": page}, (log_likelihood,))["word_perplexity"]
            losses.append(-log_likelihood)
            words.append(n_words)
        return perplexity_of(
            TokenMean(tuple(losses), tuple(words)),
            lambda deviations: of_independent(deviations, "documents"),
            {
                **version,
                "max_length": reader.max_length,
                "limit": limit,
                "documents": len(chosen),
                "skipped_documents": len(pages) - len(chosen),
                "words": sum(words),
                **what_was_measured(lm, "\x1e".join(chosen)),
            },
            metric="word perplexity",
        )


def wikitext_pages(rows: Sequence[str]) -> tuple[str, ...]:
    """The pages that the harness reads WikiText's rows as: of the 4,358 rows of WikiText-2's test split it makes 62.

    A page begins at a line that looks like a title. In one article two lines about a formula do (`= 1 rad / s ... =`),
    so the 60 articles are 62 pages. The empty rows were lines of a single blank.
    """
    pages: list[list[str]] = [[]]
    for line in "".join(row or " \n" for row in rows).split("\n"):
        heading = line.replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            pages.append([])
        pages[-1].append(line)
    return tuple(page for page in map("\n".join, pages) if page.strip())
