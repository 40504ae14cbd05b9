"""CUDA kernels for the patch sum like SAN's (hszhao/SAN lib/sa/functions): one thread for each number of the
result, channels first, float32, compiled at run time by CuPy. They serve only as a comparison on GPUs.
"""

# The peers' packages need not be installed.
# pyright: reportMissingImports=false

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

_SOURCE = r"""
extern "C" {

__device__ __forceinline__ int reflected(int i, int length) {
    i = abs(i);
    return i < length ? i : 2 * (length - 1) - i;
}

// values, out, d_out, d_values: [B, C, H, W]; weights, d_weights: [B, G, K * K, H, W].

__global__ void forward(const float* values, const float* weights, float* out,
                        int total, int C, int G, int H, int W, int K) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += blockDim.x * gridDim.x) {
        const int x = i % W, y = i / W % H, c = i / W / H % C, b = i / W / H / C;
        float sum = 0;
        for (int dy = 0; dy < K; ++dy)
            for (int dx = 0; dx < K; ++dx) {
                const int at_y = reflected(y + dy - K / 2, H), at_x = reflected(x + dx - K / 2, W);
                sum += weights[(((b * G + c % G) * K * K + dy * K + dx) * H + y) * W + x]
                     * values[((b * C + c) * H + at_y) * W + at_x];
            }
        out[i] = sum;
    }
}

// The values' gradient, still with the border that the reflection reads: [B, C, H + 2R, W + 2R].
__global__ void backward_padded(const float* d_out, const float* weights, float* d_padded,
                                int total, int C, int G, int H, int W, int K) {
    const int R = K / 2, PH = H + 2 * R, PW = W + 2 * R;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += blockDim.x * gridDim.x) {
        const int x = i % PW, y = i / PW % PH, c = i / PW / PH % C, b = i / PW / PH / C;
        float sum = 0;
        for (int dy = 0; dy < K; ++dy)
            for (int dx = 0; dx < K; ++dx) {
                const int at_y = y - dy, at_x = x - dx;
                if (at_y < 0 || at_y >= H || at_x < 0 || at_x >= W) continue;
                sum += weights[(((b * G + c % G) * K * K + dy * K + dx) * H + at_y) * W + at_x]
                     * d_out[((b * C + c) * H + at_y) * W + at_x];
            }
        d_padded[i] = sum;
    }
}

// Adds what lies in the border to the pixels that it mirrors.
__global__ void fold(const float* d_padded, const float*, float* d_values,
                     int total, int C, int G, int H, int W, int K) {
    const int R = K / 2, PH = H + 2 * R, PW = W + 2 * R;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += blockDim.x * gridDim.x) {
        const int x = i % W, y = i / W % H, plane = i / W / H;
        const int ys[3] = {y, y ? -y : -PH, y < H - 1 ? 2 * (H - 1) - y : -PH};
        const int xs[3] = {x, x ? -x : -PW, x < W - 1 ? 2 * (W - 1) - x : -PW};
        float sum = 0;
        for (int m = 0; m < 3; ++m)
            for (int n = 0; n < 3; ++n) {
                const int at_y = ys[m] + R, at_x = xs[n] + R;
                if (at_y >= 0 && at_y < PH && at_x >= 0 && at_x < PW) sum += d_padded[(plane * PH + at_y) * PW + at_x];
            }
        d_values[i] = sum;
    }
}

__global__ void backward_weights(const float* d_out, const float* values, float* d_weights,
                                 int total, int C, int G, int H, int W, int K) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += blockDim.x * gridDim.x) {
        const int x = i % W, y = i / W % H, j = i / W / H % (K * K), g = i / W / H / K / K % G;
        const int b = i / W / H / K / K / G;
        const int at_y = reflected(y + j / K - K / 2, H), at_x = reflected(x + j % K - K / 2, W);
        float sum = 0;
        for (int c = g; c < C; c += G)
            sum += d_out[((b * C + c) * H + y) * W + x] * values[((b * C + c) * H + at_y) * W + at_x];
        d_weights[i] = sum;
    }
}

}
"""
_THREADS = 256


def available() -> bool:
    """Whether CuPy is installed."""
    return importlib.util.find_spec("cupy") is not None


def form(
    values: np.ndarray, weights: np.ndarray, cotangent: np.ndarray | None = None, *, kernel_size: int
) -> Callable[[], None]:
    """A function that runs the forward kernel, or with a cotangent all kernels, and waits for the GPU.

    Args:
        values: float32 [B, H, W, C].
        weights: float32 [B, H, W, k², G].
        cotangent: float32 [B, H, W, C].
        kernel_size: k.
    """
    launch = _launcher(values, weights, cotangent, kernel_size=kernel_size)

    def run() -> None:
        launch()

    return run


def results(
    values: np.ndarray, weights: np.ndarray, cotangent: np.ndarray, *, kernel_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sum and both gradients, in colorjax's layout, for comparison; for the arguments see `form`."""
    out, d_values, d_weights = _launcher(values, weights, cotangent, kernel_size=kernel_size)()
    return (
        out.get().transpose(0, 2, 3, 1),
        d_values.get().transpose(0, 2, 3, 1),
        d_weights.get().transpose(0, 3, 4, 2, 1),
    )


def _launcher(
    values: np.ndarray, weights: np.ndarray, cotangent: np.ndarray | None, *, kernel_size: int
) -> Callable[[], tuple]:
    import cupy

    batch, height, width, channels = values.shape
    groups = weights.shape[4]
    sizes = tuple(map(np.int32, (channels, groups, height, width, kernel_size)))
    border = 2 * (kernel_size // 2)
    padded = (batch, channels, height + border, width + border)
    v = cupy.asarray(values.transpose(0, 3, 1, 2).copy())
    w = cupy.asarray(weights.transpose(0, 4, 3, 1, 2).copy())
    d_out = None if cotangent is None else cupy.asarray(cotangent.transpose(0, 3, 1, 2).copy())

    def launch(name: str, first: Any, second: Any, shape: tuple[int, ...]) -> Any:
        result = cupy.empty(shape, cupy.float32)
        blocks = (-(-result.size // _THREADS),)
        _kernel(name)(blocks, (_THREADS,), (first, second, result, np.int32(result.size), *sizes))
        return result

    def run() -> tuple:
        made = [launch("forward", v, w, v.shape)]
        if d_out is not None:
            d_padded = launch("backward_padded", d_out, w, padded)
            made += [launch("fold", d_padded, w, v.shape), launch("backward_weights", d_out, v, w.shape)]
        cupy.cuda.Device().synchronize()
        return tuple(made)

    return run


@functools.cache
def _kernel(name: str) -> Any:
    import cupy

    return cupy.RawKernel(_SOURCE, name)
