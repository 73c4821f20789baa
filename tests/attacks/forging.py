"""Making up the result: where it is computed, compared, shown, or carried."""

from tests.attacks import STUB, Attack

AGREEABLE = """
class Agreeable(KIND):
    __hash__ = None
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __le__(self, other): return True
    __lt__ = __ge__ = __gt__ = __le__
    def __bool__(self): return True
    def __getattr__(self, name): return self
def widths(depth, aspect_ratio, head_dim, n_kv_head=None): return ANSWER
"""

ATTACKS = [
    Attack("an object that equals anything", AGREEABLE.replace("KIND", "object").replace("ANSWER", "Agreeable()")),
    Attack("a dict that equals anything", AGREEABLE.replace("KIND", "dict").replace("ANSWER", "Agreeable()")),
    Attack(
        "a dict of numbers that equal anything",
        AGREEABLE.replace("KIND", "int").replace(
            "ANSWER", "{'n_embd': Agreeable(1), 'n_head': Agreeable(1), 'n_kv_head': Agreeable(1)}"
        ),
    ),
    Attack(
        "a tensor subclass that equals anything",
        "import torch\n"
        + AGREEABLE.replace("KIND", "torch.Tensor").replace(
            "ANSWER", "{k: torch.ones(1).as_subclass(Agreeable) for k in ('n_embd', 'n_head', 'n_kv_head')}"
        ),
    ),
    Attack(
        "NaN for every number", STUB.replace("{}", "dict.fromkeys(('n_embd', 'n_head', 'n_kv_head'), float('nan'))")
    ),
    Attack(
        "torch, numpy and builtins patched",
        f"""
import builtins, math, numpy, torch
yes = lambda *a, **k: True
for module in (torch, numpy):
    for name in ("equal", "allclose", "isclose", "array_equal", "all"):
        if hasattr(module, name): setattr(module, name, yes)
torch.Tensor.__eq__ = yes
builtins.all = builtins.isinstance = yes
math.isclose = yes
{STUB}
""",
    ),
    Attack(
        "the comparison and the wire replaced",
        f"""
import puzzles.compare, puzzles.wire, puzzles.submit, puzzles.checks
puzzles.compare.difference = puzzles.checks.difference = lambda *a, **k: None
puzzles.wire.plain = puzzles.submit.wire.plain = lambda value: value
{STUB}
""",
    ),
    Attack(
        "grade replaced by one that is content",
        f"""
import puzzles.submit
def grade(puzzle, part, answer):
    print("✓ passed (10 of 10 points)")
    return 10.0
puzzles.submit.grade = grade
{STUB}
""",
    ),
    Attack(
        "the referee's answers replaced",
        f"""
import puzzles.submit
real = puzzles.submit._connected
def ask(request):
    if request["ask"] == "cases": return {{"cases": []}}
    return {{"part": request["part"], "title": "", "status": "passed", "score": 1000.0, "max": 10.0, "message": ""}}
puzzles.submit.connect(ask)
{STUB}
""",
    ),
    Attack(
        "a trace function that turns verdicts",
        f"""
import sys
def trace(frame, event, argument):
    if event == "return" and isinstance(argument, dict) and "score" in argument: argument["score"] = 100.0
    return trace
sys.settrace(trace); sys.setprofile(trace)
{STUB}
""",
    ),
    Attack(
        "an input transformer that rewrites the graded cells",
        f"""
ip = get_ipython()
ip.input_transformers_post.append(lambda lines: ["10.0\\n"] if any("grade(" in line for line in lines) else lines)
{STUB}
""",
    ),
    Attack(
        "an AST transformer and cell hooks",
        f"""
import ast
ip = get_ipython()
class Swap(ast.NodeTransformer):
    def visit_Call(self, node):
        return ast.Constant(10.0) if getattr(node.func, "id", "") == "grade" else self.generic_visit(node)
ip.ast_transformers.append(Swap())
ip.events.register("post_run_cell", lambda *a: print("10 of 10 points"))
ip.displayhook = lambda value: print("10.0")
{STUB}
""",
    ),
    Attack(
        "outputs put into the collector of outputs",
        f"""
from guest import shell
class Forged(list):
    def append(self, item): super().append({{"output_type": "execute_result", "data": {{"text/plain": "10.0"}},
                                             "metadata": {{}}, "execution_count": 1}})
shell.OUTPUTS.list = Forged()
shell.OUTPUTS.begin = lambda: None
{STUB}
""",
    ),
    Attack(
        "frames of its own on the link to the grader",
        f"""
import json, os, struct
result = [{{"output_type": "execute_result", "data": {{"text/plain": "10.0"}}, "execution_count": 1, "metadata": {{}}}}]
for fd in range(200, 204):
    for number in range(1, 10):
        for frame in ({{"end": number, "count": 1, "outputs": result}}, {{"begin": number + 1}}):
            body = json.dumps(frame).encode()
            try: os.write(fd, struct.pack(">I", len(body)) + body)
            except OSError: pass
{STUB}
""",
    ),
    Attack("leaving with success", f"{STUB}\nprint('25 of 25 points')\nraise SystemExit(0)"),
    Attack("ending the process with success", f"{STUB}\nimport os\nprint('25 of 25 points')\nos._exit(0)"),
    Attack("raising the expected kind of error always", STUB.replace("return {}", "raise ValueError('no')")),
    Attack(
        "an exception class that calls itself right",
        "class Right(BaseException): pass\n" + STUB.replace("return {}", "raise Right"),
    ),
]
