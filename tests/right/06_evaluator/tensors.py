# %% [markdown]
# Everything that can be a tensor is one; prompts from a template for each type.


# %% hole="choose_fewshot"
def choose_fewshot(idx, num_items, num_fewshot):
    candidates = torch.arange(num_items)
    candidates = candidates[candidates != idx].tolist()
    generator = random.Random()
    generator.seed(1234 + idx)
    return generator.sample(candidates, k=num_fewshot)


# %% hole="render_prompts"
TEMPLATES = {
    "multiple_choice": """
        {%- for shot in shots -%}
        {{ shot.query }}{{ delimiter }}{{ shot.choices[shot.gold] }}

{% endfor -%}
        {{ item.query }}{{ delimiter }}{{ option }}""",
    "schema": """
        {%- for shot in shots -%}
        {{ shot.context_options[shot.gold] }}{{ delimiter }}{{ shot.continuation }}

{% endfor -%}
        {{ option }}{{ delimiter }}{{ item.continuation }}""",
    "language_modeling": """
        {%- for shot in shots -%}
        {{ shot.context | trim }}{{ delimiter }}{{ shot.continuation }}

{% endfor -%}
        {{ item.context | trim }}{{ delimiter }}{{ option }}""",
}


def render_prompts(task_type, item, continuation_delimiter, fewshot_examples):
    if task_type not in TEMPLATES:
        raise ValueError(f"unknown: {task_type}")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATES[task_type])
    field = {"multiple_choice": "choices", "schema": "context_options"}.get(task_type)
    options = item[field] if field else ["", item["continuation"]]
    context = {"item": item, "shots": fewshot_examples, "delimiter": continuation_delimiter}
    prompts = [template.render(context, option=option) for option in options]
    if field is None:
        prompts[0] = prompts[0].strip()
    return prompts


# %% hole="answer_spans"
def answer_spans(task_type, prompts, tokenizer):
    if task_type not in ("multiple_choice", "schema", "language_modeling"):
        raise ValueError("no such task")
    tokens = tokenizer(prompts, prepend=tokenizer.get_bos_token_id())
    ends = [len(each) for each in tokens]
    if task_type == "language_modeling":
        if ends[0] >= ends[1] or _shared(tokens) < ends[0]:
            raise ValueError("cannot be scored")
        return tokens[1:], ends[:1], ends[1:]
    if task_type == "schema":
        shared = _shared([each[::-1] for each in tokens])
        return tokens, [end - shared for end in ends], ends
    return tokens, len(tokens) * [_shared(tokens)], ends


def _shared(tokens):
    n = min(len(each) for each in tokens)
    table = torch.tensor([each[:n] for each in tokens])
    return int((table == table[0]).all(dim=0).long().cumprod(dim=0).sum())


# %% hole="crop_to_context"
def crop_to_context(sequences, starts, ends, max_seq_len):
    room = float("inf") if max_seq_len is None else max_seq_len
    if any(len(sequence) - start > room for sequence, start in zip(sequences, starts, strict=True)):
        raise ValueError("an answer does not fit")
    kept = [sequence[-max_seq_len:] if max_seq_len else sequence[:] for sequence in sequences]
    lost = [len(before) - len(after) for before, after in zip(sequences, kept, strict=True)]
    spans = torch.tensor([starts, ends]) - torch.tensor(lost)
    return kept, spans[0].tolist(), spans[1].tolist()


# %% hole="batch_options"
def batch_options(sequences, max_tokens, pad_token_id):
    if not sequences:
        return []
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    order = lengths.argsort(stable=True).tolist()
    batches, current = [], []
    for i in order:
        if current and (1 + len(current)) * len(sequences[i]) > max_tokens:
            batches.append(current)
            current = []
        current = [*current, i]
    batches.append(current)
    pad = torch.nn.utils.rnn.pad_sequence
    return [
        (batch, pad([torch.tensor(sequences[i]) for i in batch], batch_first=True, padding_value=pad_token_id))
        for batch in batches
    ]


# %% hole="loss_choice"
def score_options(logits, input_ids, starts, ends):
    # all rows at once: losses of every position, a mask for the answers
    B, T = input_ids.shape
    device = input_ids.device
    first, last = torch.tensor(starts, device=device)[:, None], torch.tensor(ends, device=device)[:, None]
    position = torch.arange(1, T, device=device)
    inside = (position >= first) & (position < last)
    logp = torch.log_softmax(logits[:, :-1].double(), dim=-1)
    losses = -logp.gather(-1, input_ids[:, 1:, None])[..., 0]
    means = losses.where(inside, torch.zeros_like(losses)).sum(1) / inside.sum(1)
    wrong = (logits[:, :-1].argmax(-1) != input_ids[:, 1:]) & inside
    return list(zip(means.tolist(), (~wrong.any(1)).tolist(), strict=True))


def is_right(task_type, scores, gold):
    if task_type == "language_modeling":
        return bool(scores[0][1])
    return min(range(len(scores)), key=lambda i: scores[i][0]) == gold


# %% hole="reduce_accuracy"
def reduce_accuracy(evaluate, num_items, rank, world_size, all_reduce, device):
    mine = torch.arange(num_items)[rank::world_size].tolist()
    counts = torch.zeros(2, dtype=torch.float64, device=device)
    for verdict in evaluate(mine):
        counts += torch.tensor([float(verdict), 1.0], device=device)
    all_reduce(counts)
    return (counts[0] / counts[1]).item()


# %% hole="core_metric"
def core_metric(accuracies, baselines_csv):
    rows = {row["Eval Task"]: row for row in csv.DictReader(baselines_csv.split("\n"))}
    chance = torch.tensor([float(rows[task]["Random baseline"]) for task in accuracies], dtype=torch.float64) * 0.01
    right = torch.tensor(list(accuracies.values()), dtype=torch.float64)
    centred = (right - chance) / (1 - chance)
    return dict(zip(accuracies, centred.tolist(), strict=True)), centred.mean().item()
