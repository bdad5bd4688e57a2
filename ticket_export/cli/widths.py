"""The options of `shrink` that say which widths are kept: multiples of a number, or what is fastest here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from ticket_export.cli.inputs import sizes_as_given
from ticket_export.errors import ShrinkError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from ticket_export.shrink.exact import Shrunk

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Which widths are kept.

    Attributes:
        round_to: None to measure.
        padded_constants: of a fixed `round_to`.
        runtime, precision, batches, threads: what is measured for.
    """

    round_to: int | None
    padded_constants: str
    runtime: str
    precision: str
    batches: tuple[int, ...]
    threads: int

    @classmethod
    def from_options(
        cls,
        round_to: str,
        padded_constants: str | None,
        runtime: str | None,
        precision: str | None,
        batch: str | None,
        threads: int | None,
    ) -> Widths:
        """Return what the options say; None where one is not given.

        Raises:
            ShrinkError: one is wrong, or has no effect beside the others.
        """
        of_auto = {"--for-runtime": runtime, "--for-precision": precision, "--for-batch": batch}
        of_auto["--threads"] = None if threads is None else str(threads)
        given = [name for name, value in of_auto.items() if value is not None]
        if round_to != AUTO:
            if not round_to.isdecimal():
                raise ShrinkError(
                    f"--round-to: {round_to!r} is no number of channels",
                    hint="--round-to 8, or --round-to auto",
                )
            if given:
                raise ShrinkError(
                    f"{given[0]} belongs to --round-to auto, got --round-to {round_to}",
                    hint="a fixed number is not measured",
                )
        elif padded_constants is not None:
            raise ShrinkError(
                f"--padded-constants {padded_constants} has no effect with --round-to auto, which tries all",
                hint="leave it out",
            )
        return cls(
            round_to=None if round_to == AUTO else int(round_to),
            padded_constants=padded_constants or "auto",
            runtime=runtime or "ort-cpu",
            precision=precision or "fp32",
            batches=tuple(
                sizes_as_given("--for-batch", "1" if batch is None else batch, ShrinkError, example="1,8")
            ),
            threads=1 if threads is None else threads,
        )

    def require_calibration(self, path: Path | None) -> None:
        """Pass when images for INT8 are given if, and only if, they are needed.

        Raises:
            ShrinkError: they are missing, or have no effect.
        """
        needed = self.round_to is None and self.precision == "int8"
        if needed and path is None:
            raise ShrinkError(
                "--for-precision int8 needs images that show the activations' ranges",
                hint="--calibration FILE.npz with train_x or x, and --mean and --std of the training",
            )
        if path is not None and not needed:
            raise ShrinkError(f"--calibration: {path} is for --round-to auto with --for-precision int8 alone")

    def shrunk(
        self,
        model: nn.Module,
        examples: Sequence[Tensor],
        *,
        residual: str,
        calibration: npt.NDArray[np.float32] | None,
    ) -> tuple[Shrunk, dict[str, Any] | None]:  # Any: JSON values
        """Return the shrunk network, and of a measurement what it was chosen from."""
        if self.round_to is not None:
            from ticket_export.shrink.exact import shrink

            fixed = shrink(
                model,
                examples,
                round_to=self.round_to,
                residual=residual,
                padded_constants=self.padded_constants,
            )
            return fixed, None
        import torch

        from ticket_export.pipeline.widths import fastest_widths

        choice = fastest_widths(
            model,
            examples,
            runtime=self.runtime,
            precision=self.precision,
            batches=self.batches,
            threads=self.threads,
            residual=residual,
            calibration=None if calibration is None else torch.from_numpy(calibration),
            activations="int8" if self.runtime == "tensorrt" else "uint8",  # TensorRT takes no zero points
            on_progress=lambda line: typer.echo(line, err=True),
        )
        return choice.shrunk, choice.to_json()


def require_stable(choice: dict[str, Any] | None) -> None:  # Any: JSON values
    """Exit with 1 when timings that chose the widths are unstable; what was written stays."""
    if choice is not None and any(one["reasons"] for one in choice["candidates"]):
        typer.echo(
            "the timings that chose the widths are unstable; the bundle is complete and exact", err=True
        )
        raise typer.Exit(1)
