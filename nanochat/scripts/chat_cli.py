"""Chat with a model in the terminal. Its calls of the calculator are shown as [calculator: 3*4] [= 12]."""

import argparse
from collections.abc import Sequence

from nanochat import command
from nanochat.chat import Chat
from nanochat.common import InputError
from nanochat.engine import Engine


def build_parser() -> argparse.ArgumentParser:
    parser = command.new_parser("chat_cli", __doc__)
    command.add_model_choice(parser, default="sft")
    command.add_device_type(parser, choices=("cuda", "cpu", "mps"))
    parser.add_argument("-p", "--prompt", default="", help="answer this and end; empty: chat")
    parser.add_argument("-t", "--temperature", type=float, default=0.6, help="0: always the likeliest token")
    parser.add_argument("-k", "--top-k", type=int, default=50, help="sample among so many likeliest tokens; 0: all")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = command.parse(build_parser(), argv)
    device = command.start(args, needs_data=False)
    model, tokenizer, _ = command.load_model(args, device)
    chat = Chat(Engine(model, tokenizer), temperature=args.temperature, top_k=args.top_k)
    if args.prompt:
        answer(chat, args.prompt, seed=42)
    else:
        converse(chat)


def answer(chat: Chat, message: str, seed: int) -> None:
    """Print the reply as it is written."""
    for text in chat.reply(message, seed):
        print(text, end="", flush=True)
    print()


def converse(chat: Chat) -> None:
    """Take turns with the user until they leave."""
    print('Say something. "clear" starts a new conversation, "quit" or Ctrl-D leaves, Ctrl-C stops an answer.')
    seed = 42
    while True:
        try:
            message = input("\nyou: ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if message in ("quit", "exit"):
            return
        if message == "clear":
            chat.clear()
            print("(a new conversation)")
        elif message:
            try:
                print("model: ", end="", flush=True)
                answer(chat, message, seed)
            except KeyboardInterrupt:
                print(" (stopped)")
            except InputError as error:
                print(f"({error})")
            seed += 1  # the same message may get another answer


if __name__ == "__main__":
    command.run(main)
