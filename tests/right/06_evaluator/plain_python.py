# %% [markdown]
# No template, no torch where Python will do: joined strings, loops over positions, log-sum-exp by hand.


# %% hole="choose_fewshot"
def choose_fewshot(idx, num_items, num_fewshot):
    # a place among the others, moved past the item asked
    return [place + (place >= idx) for place in random.Random(1234 + idx).sample(range(num_items - 1), num_fewshot)]


# %% hole="render_prompts"
def render_prompts(task_type, item, continuation_delimiter, fewshot_examples):
    def pairs(it):
        if task_type == "multiple_choice":
            return [(it["query"], choice) for choice in it["choices"]]
        if task_type == "schema":
            return [(context, it["continuation"]) for context in it["context_options"]]
        if task_type == "language_modeling":
            return [(it["context"].strip(), it["continuation"])]
        raise ValueError(task_type)

    def block(pair):
        return pair[0] + continuation_delimiter + pair[1]

    asked = pairs(item)
    if task_type == "language_modeling":
        asked = [(asked[0][0], ""), *asked]
    gold = 0 if task_type == "language_modeling" else None
    shots = [block(pairs(shot)[shot["gold"] if gold is None else gold]) for shot in fewshot_examples]
    prompts = ["\n\n".join([*shots, block(pair)]) for pair in asked]
    return [prompts[0].strip(), prompts[1]] if task_type == "language_modeling" else prompts


# %% hole="answer_spans"
def answer_spans(task_type, prompts, tokenizer):
    bos = tokenizer.get_bos_token_id()
    tokens = [[bos] + each for each in tokenizer(prompts)]
    shared = 0
    if task_type == "multiple_choice":
        while all(shared < len(t) and t[shared] == tokens[0][shared] for t in tokens):
            shared += 1
        return tokens, [shared for _ in tokens], [len(t) for t in tokens]
    if task_type == "schema":
        while all(shared < len(t) and t[-1 - shared] == tokens[0][-1 - shared] for t in tokens):
            shared += 1
        return tokens, [len(t) - shared for t in tokens], [len(t) for t in tokens]
    if task_type != "language_modeling":
        raise ValueError
    short, long = tokens
    if not (len(short) < len(long) and all(a == b for a, b in zip(short, long, strict=False))):
        raise ValueError
    return [long], [len(short)], [len(long)]


# %% hole="crop_to_context"
def crop_to_context(sequences, starts, ends, max_seq_len):
    result = ([], [], [])
    for sequence, start, end in zip(sequences, starts, ends, strict=True):
        kept = list(sequence)
        while max_seq_len is not None and len(kept) > max_seq_len:
            del kept[0]
            start, end = start - 1, end - 1
        if start < 0:
            raise ValueError("cut")
        for column, value in zip(result, (kept, start, end), strict=True):
            column.append(value)
    return result


# %% hole="batch_options"
def batch_options(sequences, max_tokens, pad_token_id):
    waiting = sorted(enumerate(sequences), key=lambda pair: len(pair[1]))
    batches = []
    while waiting:
        rows = 1
        while rows < len(waiting) and (rows + 1) * len(waiting[rows][1]) <= max_tokens:
            rows += 1
        taken, waiting = waiting[:rows], waiting[rows:]
        ids = torch.full((rows, len(taken[-1][1])), pad_token_id)
        for row, (_, sequence) in enumerate(taken):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        batches.append(([i for i, _ in taken], ids))
    return batches


# %% hole="loss_choice"
def score_options(logits, input_ids, starts, ends):
    import math

    scores = []
    for said, ids, start, end in zip(logits.tolist(), input_ids.tolist(), starts, ends, strict=True):
        losses, greedy = [], True
        for t in range(start, end):
            z = said[t - 1]
            top = max(z)
            losses.append(top + math.log(sum(math.exp(each - top) for each in z)) - z[ids[t]])
            greedy = greedy and z.index(top) == ids[t]
        scores.append((sum(losses) / len(losses) if losses else float("nan"), greedy))
    return scores


def is_right(task_type, scores, gold):
    if task_type == "language_modeling":
        ((_, greedy),) = scores
        return greedy
    chosen = 0
    for i, (loss, _) in enumerate(scores):
        if loss < scores[chosen][0]:
            chosen = i
    return chosen == gold


# %% hole="reduce_accuracy"
def reduce_accuracy(evaluate, num_items, rank, world_size, all_reduce, device):
    count = 0
    for i in range(num_items):
        if i % world_size == rank:
            count += evaluate([i])[0]
    both = torch.tensor([count], device=device)
    all_reduce(both)
    return int(both) / num_items


# %% hole="core_metric"
def core_metric(accuracies, baselines_csv):
    header, *rows = csv.reader(baselines_csv.splitlines())
    task, baseline = header.index("Eval Task"), header.index("Random baseline")
    chance = {row[task]: float(row[baseline]) for row in rows}
    centred = {}
    for name in accuracies:
        centred[name] = 1 - (1 - accuracies[name]) * 100 / (100 - chance[name])
    return centred, sum(centred.values()) / len(accuracies)
