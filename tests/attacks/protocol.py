"""Talking to the referee in ways it was not made for. Descriptor 201 leads to it."""

from tests.attacks import STUB, Attack

TALK = """
import json, os, socket, struct
from puzzles import wire
line = socket.socket(fileno=os.dup(201))
line.settimeout(5)
def ask(request):
    wire.send(line, request)
    return wire.receive(line)
def raw(document=b"", blob=b"", sizes=None):
    line.sendall(struct.pack(">QQ", *(sizes or (len(document), len(blob)))) + document + blob)
def given(n, answer): return [{"case": i, "device": "cpu", "answer": answer} for i in range(n)]
"""


def talk(code: str) -> str:
    return (
        f"{STUB}\n{TALK}\ntry:\n"
        + "\n".join(f"    {line}" for line in code.strip().split("\n"))
        + ("\nexcept (EOFError, OSError, wire.WireError) as error: print(type(error).__name__)")
    )


ATTACKS = [
    Attack(
        "guessing until it is right",
        talk("""
n = len(ask({"ask": "cases", "part": "widths"})["cases"])
for guess in range(150):
    said = ask({"ask": "submit", "part": "widths", "answers": given(n, {"n_embd": guess, "n_head": 1, "n_kv_head": 1})})
    if said["score"]: print("LOOT")
"""),
    ),
    Attack(
        "learning from the verdict and answering again",
        talk("""
ask({"ask": "submit", "part": "widths", "answers": []})
import math
cases = ask({"ask": "cases", "part": "widths"})["cases"]
answers = []
for number, case in enumerate(cases):
    heads = math.ceil(case["depth"] * case["aspect_ratio"] / case["head_dim"])
    kv = case.get("n_kv_head") or heads
    right = {"n_embd": heads * case["head_dim"], "n_head": heads, "n_kv_head": kv}
    answers.append({"case": number, "device": "cpu", "answer": wire.Raised("ValueError") if heads % kv else right})
if ask({"ask": "submit", "part": "widths", "answers": answers})["score"]: print("LOOT")
"""),
    ),
    Attack(
        "several answers to a case",
        talk("""
n = len(ask({"ask": "cases", "part": "widths"})["cases"])
every = [a for guess in range(50) for a in given(n, {"n_embd": guess, "n_head": 1, "n_kv_head": 1})]
if ask({"ask": "submit", "part": "widths", "answers": every})["score"]: print("LOOT")
"""),
    ),
    Attack(
        "a verdict of its own",
        talk("""
print(ask({"ask": "submit", "part": "widths", "answers": [], "score": 10, "status": "passed"}))
raw(json.dumps({"$dict": [["ask", "verdict"], ["part", "widths"], ["score", 10]]}).encode())
print(wire.receive(line))
"""),
    ),
    Attack(
        "answers for another student, puzzle or part",
        talk("""
for more in ({"student": "other"}, {"puzzle": "02_optimizer_zoo"}, {"seed": 0}):
    print(ask({"ask": "submit", "part": "widths", "answers": [], **more}))
ask({"ask": "submit", "part": "../window_sizes", "answers": []})
"""),
    ),
    Attack(
        "device names, numbers and keys that make no sense",
        talk("""
odd = [{"case": -1, "device": "cpu", "answer": 1}, {"case": 10**400, "device": "cpu", "answer": 10**4000},
       {"case": True, "device": "", "answer": None}, {"case": 0, "device": "cpu" * 10**5, "answer": float("nan")}]
print(ask({"ask": "submit", "part": "widths", "answers": odd}))
"""),
    ),
    Attack("a message that announces exabytes", talk("raw(sizes=(2**62, 2**62))\nprint(line.recv(1))")),
    Attack("a message of 60 MB", talk("raw(b'[' + b'1,' * (30 * 2**20) + b'1]')\nprint(wire.receive(line))")),
    Attack(
        "tiny objects by the million", talk("raw(b'[' + b'{},' * (15 * 2**20) + b'{}]')\nprint(wire.receive(line))")
    ),
    Attack("a message nested without end", talk("raw(b'[' * 10**6 + b']' * 10**6)\nprint(wire.receive(line))")),
    Attack("half a message, then silence", talk("line.sendall(struct.pack('>QQ', 1000, 0) + b'{')")),
    Attack(
        "a flood of requests",
        talk("""
while True: ask({"ask": "cases", "part": "widths"})
"""),
    ),
    Attack(
        "a flood of requests whose answers are not read",
        talk("""
body = wire.encode({"ask": "cases", "part": "window_sizes"})
for _ in range(10**5): line.sendall(body)
"""),
    ),
    Attack(
        "names of other things than dtypes",
        talk("""
for name in ("load", "hub", "os", "__loader__"):
    answer = json.dumps({"$dict": [["ask", "submit"], ["part", "widths"], ["answers", [{"$dtype": name}]]]}).encode()
    raw(answer, wire.encode(None)[wire._HEADER.size + 4:])
    print(wire.receive(line))
"""),
    ),
    Attack(
        "tensors that lie about their size",
        talk("""
header = json.dumps({"t0": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}).encode()
blob = struct.pack("<Q", len(header)) + header + b"1234"
raw(b'{"$tensor": "t0"}', blob)
print(wire.receive(line))
"""),
    ),
    Attack(
        "a pickle",
        talk("""
import pickle
class Bomb:
    def __reduce__(self): return (os.system, ("touch /tmp/LOOT",))
raw(pickle.dumps(Bomb()), pickle.dumps(Bomb()))
print(wire.receive(line))
"""),
    ),
    Attack(
        "answers in forms no judge has thought of",
        talk("""
import torch
n = len(ask({"ask": "cases", "part": "widths"})["cases"])
forms = [{"n_embd": torch.ones(3), "n_head": [], "n_kv_head": {}}, [[[[]]]], {1: 2, None: 3}, "x" * 10**6,
         torch.zeros(0), {"n_embd": 10**300, "n_head": 0, "n_kv_head": -1}, wire.Opaque("Exam"),
         wire.Raised("", "y" * 9999)]
answers = [{"case": i, "device": "cpu", "answer": forms[i % len(forms)]} for i in range(n)]
print(ask({"ask": "submit", "part": "widths", "answers": answers}))
"""),
    ),
]
