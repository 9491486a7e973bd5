"""From measured batches to the service-time model a + b n. Works on numbers; knows no file."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from cascade.calibration.artefact import MeasuredBatch, StageService
from cascade.calibration.scores import significant
from cascade.errors import ConfigError


def fit_service_time(rows: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Fit batch time a + b n with a, b >= 0, minimising relative errors: sum_i ((a + b n_i - t_i) / t_i)^2.

    Args:
        rows: batch sizes n, at least one.
        seconds: time of each, above 0.

    Returns:
        a and b, in seconds.
    """
    times = np.asarray(seconds, dtype=np.float64)
    if len(rows) != len(times) or not len(times) or not np.all(np.isfinite(times) & (times > 0)):
        raise ConfigError(f"expected a time above 0 for each of {len(rows)} batch sizes, got {list(seconds)}")
    design = np.column_stack([np.ones_like(times), np.asarray(rows, dtype=np.float64)])
    (a_s, b_s), _ = nnls(design / times[:, None], np.ones_like(times))
    return significant(a_s), significant(b_s)


def stage_service(name: str, digest: str, measured: Sequence[MeasuredBatch]) -> StageService:
    """How long a stage takes, fitted on its measured batches."""
    a_s, b_s = fit_service_time([each.rows for each in measured], [each.median_s for each in measured])
    return StageService(name=name, digest=digest, a_s=a_s, b_s=b_s, measured=tuple(measured))
