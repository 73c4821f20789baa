# %% [markdown]
# # nanochat puzzles
#
# Rebuild nanochat puzzle by puzzle, each checked against a working implementation. Open one by its link below.
#
# **Click into the cell below and press Shift+Enter**: the table is brought up to date, and each puzzle gets a button that
# runs its hidden tests. (`make lab` writes this page afresh, so keep no notes in it; your notebooks are left alone.)

# %%
from puzzles.start import start

start()

# %% [markdown]
# In a puzzle's notebook, go from part to part:
#
# 1. read, and write your code in the **hole**, the cell that says `raise NotImplementedError`; run it (Shift+Enter);
# 2. run the **check** below it: it says what is wrong and folds out three hints;
# 3. save (Ctrl+S), come back here and press the puzzle's button: the hidden tests give the points.
#
# Full marks open a commentary and other ways to solve it.
