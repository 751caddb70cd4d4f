# ---
# jupyter:
#   accelerator: GPU
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Two stages on a GPU
#
# For Colab or any machine with one NVIDIA card (Runtime, Change runtime type, T4 GPU): a joint stage over two domains, a
# stage on the target domain, both in 4 bits with LoRA, then evaluation and an export. The data are MovieLens-100K and The
# Complete Journey (see their publishers' terms of use), from PyPI; the base LLM comes from the Hub.

# %% tags=["parameters"]
package = "calrec-lite"  # or the path of a wheel, or git+https://...; "" where it is installed
base = "base/qwen3-0.6b.yaml"
data = "data/ml-100k.yaml, data/complete-journey.yaml"  # the domains movies and groceries
steps = 300  # of each stage
model_users = 300  # whose lists the LLM makes itself, for the measurement

# %%
import sys

if package:
    # !{sys.executable} -m pip install --quiet "{package}"
    pass

# %% [markdown]
# ## The machine
# What works together here, and which bases fit.

# %%
# !calrec-lite doctor

# %% [markdown]
# ## A recipe
# Only what differs from the defaults; `calrec-lite train two_stages.yaml --dry-run` shows the rest.

# %%
from pathlib import Path

Path("two_stages.yaml").write_text(f"""
extends: [{base}, {data}]
name: two_stages
stages:
  - {{name: joint, domains: [movies, groceries], max_steps: {steps}}}
  - {{name: movies, domains: [movies], max_steps: {steps}}}
evaluate: {{model_users: {model_users}}}
""")
# !calrec-lite train two_stages.yaml --dry-run

# %%
# !calrec-lite train two_stages.yaml

# %%
# !calrec-lite evaluate runs/two_stages

# %%
# !calrec-lite export runs/two_stages
# !calrec-lite recommend runs/two_stages/export "Toy Story" "Fargo"

# %% [markdown]
# `calrec-lite push runs/two_stages/export OWNER/NAME` sends it to the Hub, with its model card.
