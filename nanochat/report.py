"""What a training run says about itself: on the screen as it goes, and in its log."""

import math
from typing import Any

import torch

from nanochat.common import get_dist_info, get_peak_flops, print0
from nanochat.metrics import MetricsLog
from nanochat.progress import Progress

SMOOTHING = 0.9


class Report:
    """Loss, speed and time of a run that shows them on `progress` and keeps them in `log`.

    `state` goes into a checkpoint's meta and comes back from there, so that a resumed run reports on from it.
    Speed counts the training steps alone, without evaluations in between.
    """

    def __init__(
        self,
        log: MetricsLog,
        progress: Progress,
        tokens_per_step: int,
        flops_per_token: int,
        device: torch.device,
        state: dict[str, float] | None = None,
    ) -> None:
        self.log = log
        self.progress = progress
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self.peak_flops = math.inf
        if device.type == "cuda":
            self.peak_flops = get_peak_flops(torch.cuda.get_device_name(device)) * get_dist_info()[3]
        self.val_bpb: float | None = None
        self.state = {"smooth_train_loss": 0.0, "total_training_time": 0.0} | (state or {})

    def step(self, step: int, done: float, loss: float, lr_multiplier: float, seconds: float) -> None:
        """Report the optimizer step number `step`, after which the share `done` of the run is done."""
        smooth = SMOOTHING * self.state["smooth_train_loss"] + (1 - SMOOTHING) * loss
        self.state["smooth_train_loss"] = smooth
        self.state["total_training_time"] += seconds
        tokens_per_second = self.tokens_per_step / seconds
        mfu = tokens_per_second * self.flops_per_token / self.peak_flops  # 0 where the peak is unknown
        self.log.log(step, loss=loss, lr_multiplier=lr_multiplier, tokens_per_second=tokens_per_second, mfu=mfu)
        text = f"step {step + 1:,} | loss {smooth / (1 - SMOOTHING ** (step + 1)):.4f} | {tokens_per_second:,.0f} tok/s"
        self.progress.update(done, text + (f" | {mfu:.1%} MFU" if mfu else ""))

    def evaluation(self, step: int, **values: float) -> None:
        """Report what was measured after `step` optimizer steps."""
        self.log.log(step, **values)
        print0(f"step {step:,}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()), flush=True)
        if "val_bpb" in values:
            self.val_bpb = values["val_bpb"]
            self.state["min_val_bpb"] = min(self.state.get("min_val_bpb", math.inf), self.val_bpb)

    def meta(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: `loop_state`, and the last val_bpb if there was any."""
        return {"loop_state": self.state, "val_bpb": self.val_bpb}
