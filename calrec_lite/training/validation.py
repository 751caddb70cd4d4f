"""The validation loss: while training, and at every hand-over."""

import torch
from tqdm import tqdm

from calrec_lite.method.batch import Collator
from calrec_lite.method.rows import Rows
from calrec_lite.method.step import two_tower_step
from calrec_lite.method.towers import Towers
from calrec_lite.model.sharded import is_sharded
from calrec_lite.processes import ALONE, Processes
from calrec_lite.training.shared_step import filled


@torch.no_grad()
def validation_loss(
    towers: Towers, rows: Rows, collator: Collator, progress: bool = True, processes: Processes = ALONE
) -> float:
    """Mean nats per target item over `rows`, rows of one domain and similar length together.

    Args:
        processes: that compute it together, each a part of the batches. The figure does not depend on how many.
    """
    towers.decoder.eval()
    order = sorted(range(len(rows)), key=lambda i: (rows.domain[i], rows.length[i]))
    size = max(collator.micro_batch_size, 8)
    device = towers.head.device
    of_domain = [[i for i in order if rows.domain[i] == d] for d in range(len(rows.parts))]
    parts = [own[start : start + size] for own in of_domain for start in range(0, len(own), size)]
    total = torch.zeros(len(parts), device=device)
    split = is_sharded(towers.decoder)
    last = -(-len(parts) // processes.size) * processes.size if split else len(parts)  # all run as many parts
    mine = range(processes.rank, last, processes.size)
    for n in tqdm(mine, "validation loss", leave=False, disable=not (progress and processes.first)):
        batch = collator([rows[i] for i in parts[n % len(parts)]])
        batch = (filled(batch, processes, collator.start) if split else batch).to(device)
        nats = two_tower_step(towers, batch, collator.loss, None).nats_per_item
        if n < len(parts):
            total[n] = nats * batch.targets
    processes.begin_step()
    return float(processes.summed(total).double().sum()) / len(rows)
