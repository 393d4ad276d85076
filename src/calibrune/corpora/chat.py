"""Chats that a model writes with itself: its own user turns, from the chat template's opening, and then its answers.

The study wrote plain text only and names instruct models as a limitation (Ji et al., 2025, arXiv 2410.17711). A user
turn that nobody wrote: the template opens it, and the model goes on as it would with any text, as in Magpie (Xu et al.,
2024, arXiv 2406.08464).
"""

import hashlib
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from annotated_types import Ge

from calibrune.corpora.writing import Leg
from calibrune.errors import CorpusError
from calibrune.lm.loading import LanguageModel
from calibrune.settings import settings

USER, ANSWER = "Quuxuser", "Quuxanswer"
"""What stands in for the content of a turn, so that the template's own tokens show around it."""


@settings
class Chat:
    """What a chat is like that the model writes with itself."""

    turns: Annotated[int, Ge(1)] = 1
    """Exchanges: a user turn and its answer."""
    system: str | None = None
    """The system prompt; None: what the template has of its own."""
    max_user_tokens: Annotated[int, Ge(1)] = 256
    """Longest user turn; a longer one is ended by the template, as if it had ended there."""


@dataclass(frozen=True)
class Frame:
    """The template's own tokens around the turns, as it writes them."""

    opening: tuple[int, ...]
    """Up to where the user's content begins."""
    answered: tuple[int, ...]
    """From the end of a user turn to where the answer begins."""
    asked_again: tuple[int, ...]
    """From the end of an answer to where the next user turn begins; empty where there is one exchange."""
    closing: tuple[int, ...]
    """What follows the last answer."""
    special: frozenset[int]
    """Which of these tokens are special ones: the others are ordinary text, which a content can hold as well."""
    sha256: str
    """Sixteen digits of the template's hash."""

    @classmethod
    def of(cls, model: LanguageModel, chat: Chat) -> "Frame":
        """Read the frame off a chat of which the contents are known.

        Raises:
            CorpusError: the tokenizer has no chat template, or one that cannot be read like this.
        """
        template = model.tokenizer.get_chat_template() if model.tokenizer.chat_template else None
        if template is None:
            raise CorpusError(
                f"prompts='chat' was asked for, but the tokenizer of {model.source['name']} has no chat template; "
                f"use an instruct model, or prompts='random'"
            )
        system = [] if chat.system is None else [{"role": "system", "content": chat.system}]
        user, answer = {"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}
        open_ = _Rendered.of(model, [*system, user], answer_follows=True)
        done = _Rendered.of(model, [*system, user, answer], answer_follows=False)
        again = _Rendered.of(model, [*system, user, answer, user | {"content": USER + "two"}], answer_follows=True)
        frame = cls(
            opening=open_.ids(0, open_.place(USER)),
            answered=open_.ids(open_.place(USER) + len(USER), None),
            asked_again=again.ids(again.place(ANSWER) + len(ANSWER), again.place(USER + "two"))
            if chat.turns > 1
            else (),
            closing=done.ids(done.place(ANSWER) + len(ANSWER), None),
            special=_special_ids(model),
            sha256=hashlib.sha256(template.encode()).hexdigest()[:16],
        )
        if not (frame.opening and frame.answered):
            raise CorpusError("the chat template puts nothing before or behind a user turn; use prompts='random'")
        return frame

    def legs(
        self, chat: Chat, *, max_new_tokens: int, end_ids: tuple[int, ...], context: int | None
    ) -> tuple[Leg, ...]:
        """The stretches that the model writes; each has the same room in every text.

        Raises:
            CorpusError: the model's context has no room for them.
        """
        longest_user, longest_answer = chat.max_user_tokens, max_new_tokens
        if context is not None:
            around = len(self.answered) + max(len(self.asked_again), len(self.closing))
            share = (context - len(self.opening)) // chat.turns - around
            longest_user = min(longest_user, share // 2)
            longest_answer = min(longest_answer, share - longest_user)
            if longest_user < 1:
                raise CorpusError(
                    f"{chat.turns} exchanges leave no room in the model's context of {context} tokens; ask for fewer "
                    f"turns, or a shorter system prompt"
                )
        legs = []
        for turn in range(chat.turns):
            behind = self.closing if turn == chat.turns - 1 else self.asked_again
            legs += [
                Leg(longest_user, self.ends(self.answered, end_ids), self.answered),
                Leg(longest_answer, self.ends(behind, end_ids), behind),
            ]
        return tuple(legs)

    def ends(self, behind: tuple[int, ...], end_ids: tuple[int, ...]) -> tuple[int, ...]:
        """What ends a turn: the template's first token behind it, if that is a special one, and what ends a text.

        Where there is neither, the turn ends when it is as long as it may be.
        """
        return tuple(dict.fromkeys((*(i for i in behind[:1] if i in self.special), *end_ids)))

    def describe(self, chat: Chat, end_ids: tuple[int, ...]) -> dict[str, Any]:
        """The settings of the chat, the template, and what ends a user turn besides its longest length."""
        user_turn_ends = list(self.ends(self.answered, end_ids))
        return asdict(chat) | {
            "template_sha256": self.sha256,
            "user_turn_ends_with": user_turn_ends or f"nothing: it has {chat.max_user_tokens} tokens",
        }


def _special_ids(model: LanguageModel) -> frozenset[int]:
    added = model.tokenizer.added_tokens_decoder
    return frozenset({*model.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)})


@dataclass(frozen=True)
class _Rendered:
    """A chat as text and tokens, and which characters each token is."""

    text: str
    token_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, model: LanguageModel, messages: list[dict[str, str]], *, answer_follows: bool) -> "_Rendered":
        try:
            text: str = model.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer_follows
            )
            read: Any = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # jinja raises what the template's author wrote; a slow tokenizer has no offsets
        except Exception as error:
            raise CorpusError(
                f"the chat template of {model.source['name']} cannot be read ({type(error).__name__}: {error}); "
                f"leave a system prompt out, or use prompts='random'"
            ) from error
        return cls(text, tuple(read.input_ids), tuple(map(tuple, read.offset_mapping)))

    def place(self, content: str) -> int:
        """Where a content begins, in characters."""
        if self.text.count(content) < 1:
            raise CorpusError("the chat template leaves out or changes a turn's content; use prompts='random'")
        return self.text.rindex(content)

    def ids(self, start: int, end: int | None) -> tuple[int, ...]:
        """The tokens that lie between two characters; one that reaches into a content belongs to the content."""
        end = len(self.text) if end is None else end
        return tuple(i for i, (a, b) in zip(self.token_ids, self.spans, strict=True) if start <= a and b <= end)
