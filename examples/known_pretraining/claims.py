"""What the study of known pre-training is asked: sums of log-perplexities that are below 0 where a claim is true."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from examples.known_pretraining.splits import DOMAINS, MODELS, OUTSIDE


class How(NamedTuple):
    """A way to prune."""

    pruner: str
    pattern: str
    propagation: str | None = "pruned"

    def __str__(self) -> str:
        return f"{self.pruner}, {self.pattern}" + (", dense propagation" if self.propagation == "dense" else "")


class Term(NamedTuple):
    """A share of a sum: the log-perplexity of a model, pruned with this data, on a domain's held-back text."""

    weight: float
    model: str
    calibration: str | None
    how: How
    domain: str


Terms = list[Term]
On = Mapping[str, Sequence[str]]
"""Models, and the domains on which each is measured."""


@dataclass(frozen=True)
class Claim:
    """A sentence that is true or not, and the sums that say so."""

    says: str
    sums: Mapping[str, Terms]
    """By what they are called; each is below 0 where the claim is true, or above or near 0, as it asks."""
    asks: Literal["lower", "higher", "same"] = "lower"
    headline: str = ""
    """What it is called in the README's table, if it is there."""
    of_all: bool = False
    """It is true only if all sums say so: one that says the contrary is enough against it."""


PATTERNS = ("50%", "60%", "70%", "2:4")
WANDA = tuple(How("wanda", pattern) for pattern in PATTERNS)
SPARSEGPT = tuple(How("sparsegpt", pattern) for pattern in PATTERNS)
BOTH = WANDA + SPARSEGPT

OTHER = {"wiki-web": "pubmed-patents", "pubmed-patents": "wiki-web"}
"""The models that know nothing of each other's domains."""

OWN_OF_ALL: On = MODELS
OWN: On = {model: MODELS[model] for model in OTHER}
FOREIGN: On = {model: MODELS[other] for model, other in OTHER.items()}
ALL: On = {model: tuple(DOMAINS) for model in OTHER}

AFTER = "(asked when the first rows had been seen)"

HIGHER, BLOCKS = (("60%", "50%"), ("70%", "60%")), (("2:4", "50%"),)
"""Ways to prune that are compared, the one that prunes more or in blocks first."""

CORPORA = (*DOMAINS, OUTSIDE)
SOURCES = (*CORPORA, *MODELS, "{own}-train", "selfgen", "selfgen-wiki-web", "selfgen-pubmed-patents", "selfgen-plain")
SOURCES += ("random",)


def of(name: str | None, how: How, on: On) -> Terms:
    """One calibration, on average over models and the domains of each.

    Args:
        name: of the plan; {own} and {other} are a model's own distribution and the other model's, None no data at all.
    """
    return [
        Term(1 / len(on) / len(domains), model, name and name.format(own=model, other=OTHER.get(model)), how, domain)
        for model, domains in on.items()
        for domain in domains
    ]


def less(one: str | None, other: str | None, how: How, on: On, instead: How | None = None) -> Terms:
    """One calibration less another: pruned `how` both, or the other alone where there is an `instead` for the first."""
    return minus(of(one, instead or how, on), of(other, how, on))


def minus(one: Terms, other: Terms) -> Terms:
    """The difference of two sums."""
    return one + [term._replace(weight=-term.weight) for term in other]


def similar(how: How, on: On = ALL) -> Terms:
    """Data like the pre-training data less data like the other model's: what is good for both models falls out."""
    return less("{own}", "{other}", how, on)


def like_the_text(how: How) -> Terms:
    """Data like the text that is measured less the other, over all models: what is good for all text falls out."""
    parts = [less(name, OTHER[name], how, dict.fromkeys(MODELS, MODELS[name])) for name in OTHER]
    return [term._replace(weight=term.weight / len(parts)) for part in parts for term in part]


def _each(terms: Callable[[How], Terms], ways: Sequence[How] = BOTH) -> dict[str, Terms]:
    return {str(how): terms(how) for how in ways}


def _growing(steps: Sequence[tuple[str, str]], on: On = ALL) -> dict[str, Terms]:
    return {
        f"{name}, {high} less {low}": minus(similar(How(name, high), on), similar(How(name, low), on))
        for name in ("wanda", "sparsegpt")
        for high, low in steps
    }


def _of_method(pattern: str) -> Terms:
    # both below 0: what the better method gains, and what the better corpus gains
    corpus = similar(How("wanda", pattern), OWN)
    method = less("{own}", "{own}", How("wanda", pattern), OWN, instead=How("sparsegpt", pattern))
    return minus(corpus, method)


def claims() -> list[Claim]:
    """In the order of the page."""
    at_60, at_2_4 = WANDA[1], WANDA[3]
    return [
        Claim(
            "Data like the pre-training data is better, text of all four domains measured alike",
            _each(similar),
            headline="Data like the pre-training data is better, on text of all kinds",
        ),
        Claim(
            "... measured on the model's own domains",
            _each(lambda how: similar(how, OWN)),
            headline="Data like the pre-training data is better, on the model's own domains",
        ),
        Claim("... measured on domains that it was not trained on", _each(lambda how: similar(how, FOREIGN))),
        Claim(
            "Data like the text that is measured is better, over all three models",
            _each(like_the_text),
            headline="Data like the text that is measured is better",
        ),
        Claim(
            "Being like the pre-training data counts for more than being like the text that is measured",
            _each(lambda how: minus(similar(how), like_the_text(how))),
        ),
        Claim("Being like the pre-training data counts for more at higher sparsity", _growing(HIGHER)),
        Claim(f"... measured on the model's own domains {AFTER}", _growing(HIGHER, OWN)),
        Claim("Being like the pre-training data counts for more under 2:4 than at 50%", _growing(BLOCKS)),
        Claim(f"... measured on the model's own domains (under 2:4) {AFTER}", _growing(BLOCKS, OWN)),
        Claim(
            "One corpus is better for both models, on each one's own domains: PubMed and patents than Wikipedia and "
            f"the web {AFTER}",
            _each(lambda how: less("pubmed-patents", "wiki-web", how, OWN)),
        ),
        Claim(
            f"Data like the pre-training data is better, on the own domains of each model by itself {AFTER}",
            {f"{model}, {how}": similar(how, {model: OWN[model]}) for how in WANDA for model in OWN},
        ),
        Claim(
            "The better corpus (like the pre-training data) gains Wanda more than the better method (SparseGPT) does",
            {pattern: _of_method(pattern) for pattern in PATTERNS},
        ),
        Claim(
            "The very documents of the training are as good as others of their kind, within 1%",
            _each(lambda how: less("{own}-train", "{own}", how, OWN_OF_ALL)),
            "same",
            "The very documents of the training are as good as others of their kind, within 1%",
        ),
        Claim(
            "Self-generated text (from no prompt) is better than c4",
            _each(lambda how: less("selfgen", "c4", how, OWN_OF_ALL)),
            headline="Self-generated text (from no prompt) is better than C4",
        ),
        Claim(
            f"... that begins with two tokens of the model's own domains {AFTER}",
            _each(lambda how: less("selfgen-{own}", "c4", how, OWN)),
        ),
        Claim(
            "... than every corpus, for all models alike",
            {f"{name}, {how}": less("selfgen", name, how, OWN_OF_ALL) for how in (at_60, at_2_4) for name in CORPORA},
            of_all=True,
        ),
        Claim("... than text of domains that are not its own", _each(lambda how: less("selfgen", "{other}", how, OWN))),
        Claim(
            "... than held-back text of its own domains",
            _each(lambda how: less("selfgen", "{own}", how, OWN_OF_ALL)),
            headline="Self-generated text is better than text like the pre-training data",
        ),
        Claim(
            "... than its very training documents", _each(lambda how: less("selfgen", "{own}-train", how, OWN_OF_ALL))
        ),
        Claim(
            "... than random tokens",
            _each(lambda how: less("selfgen", "random", how, OWN_OF_ALL)),
            headline="Self-generated text is better than random tokens",
        ),
        Claim(
            "Self-generated text is better that begins with two tokens of the model's own domains than with none",
            _each(lambda how: less("selfgen-{own}", "selfgen", how, OWN)),
        ),
        Claim(
            "... than with two tokens of the other domains",
            _each(lambda how: less("selfgen-{own}", "selfgen-{other}", how, OWN)),
        ),
        Claim(
            "The study's sampling (temperature 0.6, penalty 1.2, a fifth dropped) is better than plain sampling",
            _each(lambda how: less("selfgen", "selfgen-plain", how, OWN_OF_ALL)),
            headline="The study's way to sample is better than plain sampling",
        ),
        Claim(
            "Plainly sampled, the model's own words are as good as held-back text of its own domains, within 1% "
            + AFTER,
            _each(lambda how: less("selfgen-plain", "{own}", how, OWN_OF_ALL)),
            "same",
            "Plainly sampled, self-generated text is as good as text like the pre-training data, within 1% " + AFTER,
        ),
        Claim(
            "... and better than c4 " + AFTER,
            _each(lambda how: less("selfgen-plain", "c4", how, OWN_OF_ALL)),
            headline="Plainly sampled, self-generated text is better than C4 " + AFTER,
        ),
        Claim("c4 is better than random tokens", _each(lambda how: less("c4", "random", how, OWN_OF_ALL))),
        Claim(
            f"Wanda on held-back text of the model's own domains is better than magnitude, which reads nothing {AFTER}",
            {
                how.pattern: less("{own}", None, How("magnitude", how.pattern, None), OWN_OF_ALL, instead=how)
                for how in WANDA
            },
        ),
        Claim(
            "Magnitude, which reads nothing, is better than Wanda on random tokens",
            {
                how.pattern: less(None, "random", how, OWN_OF_ALL, instead=How("magnitude", how.pattern, None))
                for how in WANDA
            },
        ),
        Claim(
            "16 samples are enough: 64 are as good, within 1%",
            {str(at_60): less("{own}:samples=64", "{own}", at_60, OWN_OF_ALL)},
            "same",
            "A small set is enough: 64 samples are as good as 16, within 1%",
        ),
        Claim(
            "16 samples are better than fewer",
            {f"than {n}, {at_60}": less("{own}", f"{{own}}:samples={n}", at_60, OWN_OF_ALL) for n in (8, 4, 2)},
        ),
        Claim(
            "Statistics of the dense model do as well as those of the pruned one, within 1%",
            {
                str(how): less("{own}", "{own}", how, OWN_OF_ALL, instead=how._replace(propagation="dense"))
                for how in (at_60, at_2_4)
            },
            "same",
        ),
    ]
