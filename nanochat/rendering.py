"""Conversations as training data: token ids, and a mask that says which of them the model learns to say.

A conversation is {"messages": [{"role": ..., "content": ...}, ...]}: an optional system message, then user and
assistant in turn. What the assistant writes is text, or a list of parts {"type": ..., "text": ...} in which it calls
Python and reads the result:

    <|bos|> <|user_start|> question <|user_end|>
    <|assistant_start|> text <|python_start|> 2+2 <|python_end|> <|output_start|> 4 <|output_end|> text
    <|assistant_end|>

The mask is 1 on all that the model has to produce by itself: the assistant's text, its Python, and the token that ends
its turn. It is 0 on what others put there: the user's words, <|assistant_start|>, and the tool's output.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nanochat.common import InputError

if TYPE_CHECKING:
    from nanochat.tokenizer import RustBPETokenizer

Message = Mapping[str, Any]
Conversation = Mapping[str, Any]

# part type -> (the tag of the special tokens around it, mask)
PARTS = {"text": (None, 1), "python": ("python", 1), "python_output": ("output", 0)}


def render_conversation(
    tokenizer: "RustBPETokenizer", conversation: Conversation, max_tokens: int = 2048
) -> tuple[list[int], list[int]]:
    """Token ids and mask (1 = the model is trained on this token) of a conversation, cut to its first `max_tokens`.

    Raises:
        IndexError: there is no message, or none after the system message.
        InputError: the roles do not alternate from user, or a user or system message is not a string.
        ValueError: an assistant message is neither a string nor a list of parts of the three known types.
    """
    ids: list[int] = []
    mask: list[int] = []
    for tokens, trained in _segments(tokenizer, _turns(conversation["messages"])):
        ids += tokens
        mask += [trained] * len(tokens)
    return ids[:max_tokens], mask[:max_tokens]


def render_for_completion(tokenizer: "RustBPETokenizer", conversation: Conversation) -> list[int]:
    """The prompt for the model's own answer: all but the last message (the assistant's), then <|assistant_start|>.

    Raises:
        InputError: the last message is not the assistant's. For the rest see `render_conversation`.
    """
    *before, last = _not_empty(conversation["messages"])
    if last["role"] != "assistant":
        raise InputError(f"the last message is the {last['role']}'s: there is no answer of the assistant to replace")
    ids, _ = render_conversation(tokenizer, {"messages": before})
    return [*ids, tokenizer.encode_special("<|assistant_start|>")]


def visualize_tokenization(
    tokenizer: "RustBPETokenizer", ids: list[int], mask: list[int], with_token_id: bool = False
) -> str:
    """The decoded tokens, separated by bars, in terminal colours: green = trained on, red = not."""
    shown = []
    for token_id, trained in zip(ids, mask, strict=True):
        colour = "\033[92m" if trained else "\033[91m"
        token_id_text = f"\033[90m({token_id})\033[0m" if with_token_id else ""
        shown.append(f"{colour}{tokenizer.decode([token_id])}\033[0m{token_id_text}")
    return "|".join(shown)


def _turns(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages with a leading system message merged into the user's first. The caller's list stays as it is."""
    if _not_empty(messages)[0]["role"] != "system":
        return messages
    system, *turns = messages
    first, *rest = _not_empty(turns)
    if first["role"] != "user":
        raise InputError(f"the user must speak after the system message, not the {first['role']}")
    merged = _spoken_text(system) + "\n\n" + _spoken_text(first)
    return [{"role": "user", "content": merged}, *rest]


def _not_empty(messages: Sequence[Message]) -> Sequence[Message]:
    if not messages:
        raise IndexError("a conversation needs at least one message, and one more after a system message")
    return messages


def _segments(tokenizer: "RustBPETokenizer", turns: Sequence[Message]) -> Iterator[tuple[list[int], int]]:
    """The conversation as runs of tokens that share one mask value."""
    yield [tokenizer.get_bos_token_id()], 0
    for i, message in enumerate(turns):
        speaker = "assistant" if i % 2 else "user"
        if message["role"] != speaker:
            raise InputError(f"turn {i} must be the {speaker}'s, not the {message['role']}'s")
        if speaker == "user":
            yield _tagged(tokenizer, "user", _spoken_text(message)), 0
        else:
            yield [tokenizer.encode_special("<|assistant_start|>")], 0
            for part in _assistant_parts(message):
                tag, trained = PARTS[part["type"]]
                yield _tagged(tokenizer, tag, part["text"]), trained
            yield [tokenizer.encode_special("<|assistant_end|>")], 1


def _tagged(tokenizer: "RustBPETokenizer", tag: str | None, text: str) -> list[int]:
    ids = tokenizer.encode(text)
    if tag is None:
        return ids
    return [tokenizer.encode_special(f"<|{tag}_start|>"), *ids, tokenizer.encode_special(f"<|{tag}_end|>")]


def _spoken_text(message: Message) -> str:
    content = message["content"]
    if not isinstance(content, str):
        raise InputError(f"a {message['role']} message must be a string, not {type(content).__name__}")
    return content


def _assistant_parts(message: Message) -> Sequence[Message]:
    content = message["content"]
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ValueError(f"an assistant message must be a string or a list of parts, not {type(content).__name__}")
    for part in content:
        if part.get("type") not in PARTS or not isinstance(part.get("text"), str):
            raise ValueError(f"a part must have a text and a type out of {', '.join(PARTS)}, got {part!r}")
    return content
