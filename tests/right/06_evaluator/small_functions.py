# %% [markdown]
# Generators, itertools and pattern matching; one all_reduce for each number.


# %% hole="choose_fewshot"
def choose_fewshot(idx, num_items, num_fewshot):
    if num_items - 1 < num_fewshot:
        raise ValueError("too few items")
    rng = random.Random(idx + 1234)
    return rng.sample([*range(idx), *range(idx + 1, num_items)], num_fewshot)


# %% hole="render_prompts"
BLOCK = jinja2.Template("{{ c }}{{ d }}{{ e }}", undefined=jinja2.StrictUndefined)


def render_prompts(task_type, item, continuation_delimiter, fewshot_examples):
    def blocks(each, all_options):
        match task_type:
            case "multiple_choice":
                options = [{"c": each["query"], "e": choice} for choice in each["choices"]]
            case "schema":
                options = [{"c": context, "e": each["continuation"]} for context in each["context_options"]]
            case "language_modeling":
                options = [{"c": each["context"].strip(), "e": end} for end in ("", each["continuation"])]
            case _:
                raise ValueError(task_type)
        chosen = options if all_options else [options[1 if task_type == "language_modeling" else each["gold"]]]
        return [BLOCK.render(option, d=continuation_delimiter) for option in chosen]

    before = "".join(blocks(shot, False)[0] + "\n" * 2 for shot in fewshot_examples)
    prompts = [before + block for block in blocks(item, True)]
    if task_type == "language_modeling":
        without, complete = prompts
        prompts = [without.strip(), complete]
    return prompts


# %% hole="answer_spans"
def answer_spans(task_type, prompts, tokenizer):
    import itertools

    def alike(rows):
        return len(list(itertools.takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))))

    bos = tokenizer.get_bos_token_id()
    rows = [tokenizer(prompt, prepend=bos) for prompt in prompts]
    match task_type:
        case "multiple_choice":
            starts = itertools.repeat(alike(rows), len(rows))
        case "schema":
            n = alike(map(reversed, rows))
            starts = (len(row) - n for row in rows)
        case "language_modeling":
            before, rows = rows[0], rows[1:]
            if before != rows[0][: len(before)] or before == rows[0]:
                raise ValueError("nothing to score")
            starts = [len(before)]
        case _:
            raise ValueError(task_type)
    return rows, list(starts), list(map(len, rows))


# %% hole="crop_to_context"
def crop_to_context(sequences, starts, ends, max_seq_len):
    options = [_crop(*option, max_seq_len) for option in zip(sequences, starts, ends, strict=True)]
    return tuple(map(list, zip(*options, strict=True)))


def _crop(sequence, start, end, limit):
    cut = 0 if limit is None or len(sequence) <= limit else len(sequence) - limit
    if cut > start:
        raise ValueError("the answer is too long")
    return sequence[cut:], start - cut, end - cut


# %% hole="batch_options"
def batch_options(sequences, max_tokens, pad_token_id):
    def fill(order):
        while order:
            n = next((n for n in range(len(order), 1, -1) if n * len(sequences[order[n - 1]]) <= max_tokens), 1)
            yield order[:n]
            order = order[n:]

    def stack(rows):
        T = max(len(sequences[i]) for i in rows)
        return torch.stack([F.pad(torch.tensor(sequences[i]), (0, T - len(sequences[i])), value=pad_token_id) for i in rows])

    order = [i for _, i in sorted((len(sequence), i) for i, sequence in enumerate(sequences))]
    return [(rows, stack(rows)) for rows in fill(order)]


# %% hole="loss_choice"
def score_options(logits, input_ids, starts, ends):
    def one(row, start, end):
        answer = input_ids[row, start:end]
        z = logits[row].narrow(0, start - 1, end - start)
        losses = z.logsumexp(-1) - z[torch.arange(end - start), answer]
        return float(losses.mean()), bool((z.max(-1).indices == answer).all())

    return [one(row, *span) for row, span in enumerate(zip(starts, ends, strict=True))]


def is_right(task_type, scores, gold):
    if task_type == "language_modeling":
        return all(greedy for _, greedy in scores)
    best = reduce(lambda best, i: i if scores[i][0] < scores[best][0] else best, range(len(scores)))
    return gold == best


# %% hole="reduce_accuracy"
def reduce_accuracy(evaluate, num_items, rank, world_size, all_reduce, device):
    mine = [i for i in range(num_items) if i % world_size == rank]
    right = evaluate(mine) if mine else []
    totals = []
    for count in (right.count(True), len(mine)):
        total = torch.full((), count, dtype=torch.int64, device=device)
        all_reduce(total)
        totals.append(total.item())
    return totals[0] / totals[1]


# %% hole="core_metric"
def core_metric(accuracies, baselines_csv):
    from statistics import mean

    table = {}
    for row in csv.DictReader(io.StringIO(baselines_csv)):
        table.setdefault(row["Eval Task"], float(row["Random baseline"]) / 100)

    def centre(task):
        chance = table[task]
        return (accuracies[task] - chance) / (1.0 - chance)

    centred = {task: centre(task) for task in accuracies}
    return centred, mean(centred.values())
