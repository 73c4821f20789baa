# %% [markdown]
# In exponents, and by counting.


# %% hole="optimal_batch_size"
def optimal_batch_size(target_tokens, reference_tokens):
    doublings = 0.383 * (math.log2(target_tokens) - math.log2(reference_tokens))
    return 1 << 19 + round(doublings)


# %% hole="grad_accum_steps"
def grad_accum_steps(total_batch_size, device_batch_size, sequence_len, world_size):
    passes, left = 0, total_batch_size
    while left > 0:
        left -= device_batch_size * sequence_len * world_size
        passes += 1
    if left:
        raise ValueError("there is a rest")
    return passes
